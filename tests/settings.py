"""Settings for tests: the product's own, with fast hashing and a throw-away data folder."""

from __future__ import annotations

import os
import tempfile

# One folder per test process, set before the product's settings read the environment, so that
# no test can touch the checkout's own state.
os.environ.setdefault("GPUCLOUD_DATA_DIR", tempfile.mkdtemp(prefix="gpucloud-test-"))

from gpucloud.settings import *  # noqa: F403
from gpucloud.settings import DATA_DIR, DATABASES

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# A file: threads that share an in-memory database block each other in ways a file never does.
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["TEST"] = {"NAME": str(DATA_DIR / "test.sqlite3")}

# Only tests about throttles mean it; they set what they need.
LOGIN_FAILURES_PER_ACCOUNT = LOGIN_FAILURES_PER_IP = LOGINS_PER_IP = REGISTRATIONS_PER_IP = []
REFRESHES_PER_IP = API_CALLS_PER_IP = API_CALLS_PER_USER = []
