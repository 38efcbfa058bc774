from datetime import timedelta

from django.db import migrations
from django.db.models import F, Q, Sum
from django.db.models.functions import TruncHour


def take_back(apps, schema_editor):
    """Prompts that nobody served were billed: take what the rows still tell out of the sums."""
    alias = schema_editor.connection.alias
    rows, sums, totals = (
        apps.get_model("inference", name).objects.using(alias) for name in ("Request", "UsageRollup", "KeyTotal")
    )
    unserved = rows.filter(
        Q(state="cancelled", attempts=0) | Q(state__in=("failed", "expired"), delivered_tokens=0)
    ).annotate(hour=TruncHour("created_at"))
    groups = unserved.order_by().values("hour", "user_id", "key_id", "model", "node").annotate(tokens=Sum("prompt_tokens"))
    for group in groups:
        tokens, key_id = group.pop("tokens"), group.pop("key_id") or 0
        # A range: on SQLite the ledger's own times have microseconds, and equal no hour of Django's.
        hour = group.pop("hour")
        of_hour = sums.filter(hour__gte=hour, hour__lt=hour + timedelta(hours=1))
        of_hour.filter(key_id=key_id, **group).update(prompt_tokens=F("prompt_tokens") - tokens)
        totals.filter(key_id=key_id, node=group["node"]).update(prompt_tokens=F("prompt_tokens") - tokens)


class Migration(migrations.Migration):
    dependencies = [("inference", "0003_balance")]

    operations = [migrations.RunPython(take_back, migrations.RunPython.noop)]
