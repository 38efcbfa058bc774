"""Who and what the rows talk about, made in a server's own database.

    python -m tests.bad_inputs.cast        (with the server's environment) prints a JSON object

Tokens that a server would never give are signed here, with the key of the test's server.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from typing import Any

import django

PASSWORD = "correct horse battery staple"


def make_cast() -> dict[str, Any]:
    """Return the values of `$NAME`s, and some more that scenes need."""
    from django.contrib.sessions.backends.db import SessionStore
    from django.utils import timezone

    from accounts.logins import start_login
    from accounts.models import ApiKey, User
    from accounts.services import create_key, create_user, ensure_user, revoke_key
    from cluster.models import WorkerToken
    from cluster.services import create_worker_token, revoke_worker_token

    alice, _ = ensure_user(email="alice@example.com")
    alice.set_password(PASSWORD)
    alice.save()
    bob = create_user(email="bob@example.com", password=PASSWORD)
    # Their hash is Alice's: bcrypt takes a third of a second, and nobody looks.
    made = {
        name: User.objects.create(email=f"{name}@example.com", password=alice.password, is_active=name != "gone")
        for name in ("gone", "hasty", "taken", "locked")
    }
    key, secret = create_key(user=alice, name="good", requests_per_minute=0)
    others_key, others_secret = create_key(user=bob, name="other", requests_per_minute=0)
    revoked, revoked_secret = create_key(user=alice, name="revoked")
    revoke_key(key=revoked)
    expired, expired_secret = create_key(user=alice, name="expired")
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(days=1))
    _, limited = create_key(user=alice, name="limited", requests_per_minute=5)
    _, thirsty = create_key(user=alice, name="thirsty", tokens_per_minute=60)
    _, poor = create_key(user=alice, name="poor", monthly_tokens=1)
    _, narrow = create_key(user=alice, name="narrow", models=["mistral-*"], requests_per_minute=0)
    _, worker = create_worker_token(name="rows")
    _, bound = create_worker_token(name="bound", models=["llama-*", "mistral-*"])
    dead, dead_worker = create_worker_token(name="dead")
    revoke_worker_token(token=dead)
    _, short_worker = create_worker_token(name="short-lived")
    late, late_worker = create_worker_token(name="late")
    WorkerToken.objects.filter(pk=late.pk).update(expires_at=timezone.now() - timedelta(days=1))
    login, stale = start_login(user=alice), start_login(user=made["hasty"])
    made["hasty"].set_password(PASSWORD + "!")
    made["hasty"].save()
    session = SessionStore()
    session.update({"_auth_user_id": str(bob.pk), "_auth_user_backend": "django.contrib.auth.backends.ModelBackend"})
    session["_auth_user_hash"] = bob.get_session_auth_hash()
    session.save()
    return {
        "GOODKEY": secret,
        "GOODPREFIX": key.prefix,
        "OWN_KEY_ID": str(key.pk),
        "OTHER_TENANT_KEY_ID": str(others_key.pk),
        "OTHER_USER": str(bob.pk),
        "OTHERKEY": others_secret,
        "REVOKED": revoked_secret,
        "EXPIRED": expired_secret,
        "LIMITED": limited,
        "THIRSTY": thirsty,
        "POOR": poor,
        "NARROW": narrow,
        "ACCESS": login.access,
        "REFRESH": login.refresh,
        "JWT(old_password)": stale.access,
        "EXISTING": "taken@example.com",
        "INACTIVE": "gone@example.com",
        "LOCKED": "locked@example.com",
        "USER": "alice@example.com",
        "PASS": PASSWORD,
        "SESSION": f"sessionid={session.session_key}",
        "WORKER": worker,
        "BOUND_WORKER": bound,
        "REVOKED_WORKER": dead_worker,
        "EXPIRED_WORKER": late_worker,
        "SHORT_WORKER": short_worker,
        **_forge(login.access),
    }


def _forge(access: str) -> dict[str, str]:
    """Return tokens that must not be believed, made from one that is."""
    import jwt
    from django.conf import settings

    options = {"verify_aud": False}
    claims = jwt.decode(access, settings.JWT_KEY, algorithms=["HS256"], options=options)
    now = int(time.time())

    def sign(key: str = settings.JWT_KEY, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        changed = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(changed, key, algorithm="HS256", headers=headers)

    unsigned = jwt.encode(claims, None, algorithm="none")
    return {
        "JWT(alg=none)": unsigned,
        "JWT(alg=None)": unsigned.replace(unsigned.split(".")[0], "eyJ0eXAiOiJKV1QiLCJhbGciOiJOb05lIn0"),
        "JWT(other key)": sign("k" * 64),
        "JWT(empty key)": sign("\0"),
        "JWT(secret key)": sign(settings.SECRET_KEY),
        "JWT(HS512)": jwt.encode(claims, settings.JWT_KEY * 4, algorithm="HS512"),
        "JWT(jku=http://127.0.0.1:9/)": sign("k" * 64, {"jku": "http://127.0.0.1:9/", "kid": "../../etc/passwd"}),
        "JWT(x5u=http://127.0.0.1:9/)": sign("k" * 64, {"x5u": "http://127.0.0.1:9/"}),
        "JWT(jwk)": sign("k" * 64, {"jwk": {"kty": "oct", "k": "a2tr"}}),
        "JWT(expired)": sign(exp=now - 1),
        "JWT(nbf)": sign(nbf=now + 3600),
        "JWT(no exp)": sign(exp=None),
        "JWT(other iss)": sign(iss="evil"),
        "JWT(no iss)": sign(iss=None),
        "JWT(other aud)": sign(aud="evil"),
        "JWT(no type)": sign(token_type=None),
        "JWT(other user)": sign(user_id="999999"),
        "JWT(user is a list)": sign(user_id=["1"]),
        "JWT(user is a name)": sign(user_id="1 OR 1=1"),
        "JWT(no user)": sign(user_id=None),
        "JWT(no login)": sign(login=None),
        "JWT(cut)": access[:-4],
        "JWT(two parts)": ".".join(access.split(".")[:2]),
    }


if __name__ == "__main__":
    django.setup()
    json.dump(make_cast(), sys.stdout)
