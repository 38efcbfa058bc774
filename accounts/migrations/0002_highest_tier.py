import django.db.models
from django.db import migrations, models


def allow_what_was_given(apps, schema_editor):
    """A key could use its own tier and no other."""
    keys = apps.get_model("accounts", "ApiKey").objects.using(schema_editor.connection.alias)
    keys.update(highest_tier=models.F("tier"))


TIERS = [("priority", "Priority"), ("default", "Default"), ("flex", "Flex"), ("batch", "Batch")]


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]

    operations = [
        migrations.AlterField(
            "apikey",
            "tier",
            models.CharField(
                "default tier", max_length=8, choices=TIERS, default="default", help_text="For requests that name none."
            ),
        ),
        migrations.AddField(
            "apikey",
            "highest_tier",
            models.CharField(
                max_length=8,
                choices=TIERS,
                default="default",
                help_text="A request that asks for more is served in this.",
            ),
        ),
        migrations.RunPython(allow_what_was_given, migrations.RunPython.noop),
        migrations.AddConstraint(
            "apikey",
            models.CheckConstraint(
                name="api_key_highest_tier_is_known",
                condition=models.Q(("highest_tier__in", ["priority", "default", "flex", "batch"])),
            ),
        ),
    ]
