"""Settings, all of them, from the environment; see `templates/docs/settings.md` for the list."""

from __future__ import annotations

from datetime import timedelta

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from gpucloud.env import (
    BASE_DIR,
    data_dir,
    database_config,
    env_bool,
    env_choice,
    env_float,
    env_int,
    env_list,
    env_networks,
    env_origins,
    env_rates,
    env_secret,
    env_str,
    env_url,
    host_of,
)

DEBUG = env_bool("GPUCLOUD_DEBUG")
DATA_DIR = data_dir()
SECRET_KEY = env_secret("GPUCLOUD_SECRET_KEY")
KEY_PEPPER = env_secret("GPUCLOUD_KEY_PEPPER")
JWT_KEY = env_secret("GPUCLOUD_JWT_KEY")
PUBLIC_URL = env_url("GPUCLOUD_PUBLIC_URL")
TRUSTED_PROXIES = env_networks("GPUCLOUD_TRUSTED_PROXIES")
CORS_ORIGINS = env_origins("GPUCLOUD_CORS_ORIGINS")
ALLOWED_HOSTS = env_list("GPUCLOUD_ALLOWED_HOSTS") or [
    "localhost",
    "127.0.0.1",
    "[::1]",
    *([host_of(PUBLIC_URL)] if PUBLIC_URL else []),
]
JWT_KEY = env_secret("GPUCLOUD_JWT_KEY")
if len(JWT_KEY.encode()) < 32:
    raise ImproperlyConfigured(
        f"GPUCLOUD_JWT_KEY has {len(JWT_KEY.encode())} bytes: tokens need a random key of at least 32."
    )

INSTALLED_APPS = [
    "daphne",  # before staticfiles: it replaces `runserver`
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_htmx",
    "template_partials",
    "rest_framework",
    "rest_framework_simplejwt",
    "corsheaders",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "gpucloud",
    "accounts",
    "cluster",
    "inference",
]

MIDDLEWARE = [
    "gpucloud.middleware.say_what_browsers_may",
    "corsheaders.middleware.CorsMiddleware",  # before the redirect to https: preflights follow none
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "gpucloud.middleware.lead_htmx_to_login",
    "gpucloud.middleware.answer_too_many",
]

ROOT_URLCONF = "gpucloud.urls"
ASGI_APPLICATION = "gpucloud.asgi.application"
APPEND_SLASH = True

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

DATABASES = {"default": database_config(env_str("DATABASE_URL"))}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_USER_MODEL = "accounts.User"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "home"
LOGOUT_REDIRECT_URL = "login"
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.BCryptSHA256PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

STATIC_URL = "/static/"
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_PARSER_CLASSES": ["gpucloud.lib.rest.parsing.GuardedJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_THROTTLE_CLASSES": ["gpucloud.lib.rest.throttling.UserThrottle"],
    "DEFAULT_SCHEMA_CLASS": "gpucloud.lib.rest.schema.ApiSchema",
    "DEFAULT_METADATA_CLASS": None,
    "EXCEPTION_HANDLER": "gpucloud.lib.rest.errors.handle_exception",
    "URL_FORMAT_OVERRIDE": None,
}
SIMPLE_JWT = {
    "ALGORITHM": "HS256",
    "SIGNING_KEY": JWT_KEY,
    "ISSUER": "gpucloud",
    "AUDIENCE": "gpucloud-api",
    "LEEWAY": 0,
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=env_float("GPUCLOUD_JWT_ACCESS_MINUTES", 5.0, minimum=0.01)),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=env_float("GPUCLOUD_JWT_REFRESH_DAYS", 14.0, minimum=0.0001)),
    "CHECK_REVOKE_TOKEN": True,
    "CHECK_USER_IS_ACTIVE": True,
}
TIERS = ("priority", "default", "flex", "batch")
API_DOCS = env_bool("GPUCLOUD_API_DOCS", True)
SPECTACULAR_SETTINGS = {
    "TITLE": "gpucloud management API",
    "DESCRIPTION": "Accounts, keys, usage, requests and workers. `/v1` is OpenAI's API and described by OpenAI.",
    "VERSION": "1",
    "SCHEMA_PATH_PREFIX": "/api",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_AUTHENTICATION": [],
    "ENUM_GENERATE_CHOICE_DESCRIPTION": False,
    "DEFAULT_GENERATOR_CLASS": "gpucloud.lib.rest.schema.OnceGenerator",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "gpucloud.lib.rest.schema.describe_errors",
    ],
    "ENUM_NAME_OVERRIDES": {"TierEnum": "accounts.services.TIERS"},
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": STATIC_URL + "img/icon.svg",
    "SWAGGER_UI_SETTINGS": {"deepLinking": True, "docExpansion": "list", "persistAuthorization": False},
}

CACHES = {
    "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
    "throttle": {
        "BACKEND": "gpucloud.lib.countercache.CounterCache",
        "LOCATION": "throttle",
        # The default of 300 would forget most counters, and with them the limits.
        "OPTIONS": {"MAX_ENTRIES": 1_000_000},
    },
}
RATELIMIT_USE_CACHE = "throttle"
LOGIN_FAILURES_PER_ACCOUNT = env_rates("GPUCLOUD_LOGIN_FAILURES_PER_ACCOUNT", "10/m,100/h")
LOGIN_FAILURES_PER_IP = env_rates("GPUCLOUD_LOGIN_FAILURES_PER_IP", "30/m")
LOGINS_PER_IP = env_rates("GPUCLOUD_LOGINS_PER_IP", "120/m")
REGISTRATIONS_PER_IP = env_rates("GPUCLOUD_REGISTRATIONS_PER_IP", "20/m,100/h")
REFRESHES_PER_IP = env_rates("GPUCLOUD_REFRESHES_PER_IP", "120/m")
API_CALLS_PER_IP = env_rates("GPUCLOUD_API_CALLS_PER_IP", "3000/m")
API_CALLS_PER_USER = env_rates("GPUCLOUD_API_CALLS_PER_USER", "1200/m")
REGISTRATION = env_bool("GPUCLOUD_REGISTRATION", True)

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

STATIC_ROOT = DATA_DIR / "static"
STATICFILES_DIRS = [BASE_DIR / "static"]
SERVESTATIC_AUTOREFRESH = DEBUG
SERVESTATIC_USE_FINDERS = True

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF, "data:"],
        "font-src": [SELF],
        "connect-src": [SELF],
        "base-uri": [NONE],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True  # htmx takes the token from the page
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
CSRF_FAILURE_VIEW = "gpucloud.views.refuse_form"
if PUBLIC_URL:
    CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
if PUBLIC_URL.startswith("https://"):
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
    # Browsers take a cookie of such a name from this very host only, over https.
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-sessionid", "__Host-csrftoken"
    SECURE_HSTS_SECONDS = 31_536_000
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_SSL_REDIRECT = True
if TRUSTED_PROXIES:
    # From anybody else `gpucloud.forwarded` takes the header away before Django sees it.
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Preloading is for the owner of the domain to ask for: one is on browsers' lists for years.
SILENCED_SYSTEM_CHECKS = ["security.W021"]

# Pages of these origins may call /api with a token of their own; cookies are never let through.
# For /v1, which is outside Django, `inference.openai.cors` does the same.
CORS_ALLOWED_ORIGINS = CORS_ORIGINS
CORS_URLS_REGEX = r"^/api/"
CORS_ALLOW_CREDENTIALS = False
CORS_EXPOSE_HEADERS = ["retry-after", "content-disposition"]

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "gpucloud.lib.logs.LineFormatter"} | ({"wordless": ()} if DEBUG else {})},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        # At INFO it logs every socket with its query string, and people put secrets there.
        "uvicorn": {"level": "WARNING"},
        # Instead of Django's own, which mails whole requests to the admins.
        "django": {"level": "INFO"},
        # Anybody may name a host that is not ours; the 400 says enough, and a traceback each would bury the rest.
        "django.security.DisallowedHost": {"level": "CRITICAL"},
        "django.server": {"level": "INFO", "propagate": True},
    },
    "root": {"handlers": ["stderr"], "level": env_str("GPUCLOUD_LOG_LEVEL", "INFO")},
}

# The cluster's rhythm. Every time-out can be set, so that tests run at a tenth of it.
HEARTBEAT_S = env_float("GPUCLOUD_HEARTBEAT_S", 5.0, minimum=0.05)
WORKER_STALE_S = env_float("GPUCLOUD_WORKER_STALE_S", HEARTBEAT_S * 1.5)
WORKER_SILENT_S = env_float("GPUCLOUD_WORKER_SILENT_S", HEARTBEAT_S * 3.2)
MAX_SOCKETS_PER_TOKEN = env_int("GPUCLOUD_MAX_SOCKETS_PER_TOKEN", 1000, minimum=1)
HELLO_TIMEOUT_S = env_float("GPUCLOUD_HELLO_TIMEOUT_S", 5.0)
QUEUE_TIMEOUT_S = env_float("GPUCLOUD_QUEUE_TIMEOUT_S", 30.0)
NO_WORKER_GRACE_S = env_float("GPUCLOUD_NO_WORKER_GRACE_S", 10.0)
TOTAL_TIMEOUT_S = env_float("GPUCLOUD_TOTAL_TIMEOUT_S", 600.0)
CANCEL_ACK_S = env_float("GPUCLOUD_CANCEL_ACK_S", 2.0)
FIRST_TOKEN_S = env_float("GPUCLOUD_FIRST_TOKEN_S", 30.0)
NEXT_TOKEN_S = env_float("GPUCLOUD_NEXT_TOKEN_S", 10.0)
WORKER_RETURN_S = env_float("GPUCLOUD_WORKER_RETURN_S", 20.0)
PROBE_AFTER_S = env_float("GPUCLOUD_PROBE_AFTER_S", 5.0)
PROBE_TIMEOUT_S = env_float("GPUCLOUD_PROBE_TIMEOUT_S", 10.0)
FLAP_LOSSES = env_int("GPUCLOUD_FLAP_LOSSES", 3, minimum=1)
QUARANTINE_S = env_float("GPUCLOUD_QUARANTINE_S", 5.0)
AGED_AFTER_S = env_float("GPUCLOUD_AGED_AFTER_S", 10.0)
MAX_WAITING = env_int("GPUCLOUD_MAX_WAITING", 1000, minimum=1)
MAX_WAITING_TOKENS = env_int("GPUCLOUD_MAX_WAITING_TOKENS", 16_000_000, minimum=1)
MAX_WAITING_SHARE = env_float("GPUCLOUD_MAX_WAITING_SHARE", 0.25)
EARLY_HEADERS_S = env_float("GPUCLOUD_EARLY_HEADERS_S", 2.0)
STUCK_WRITER_S = env_float("GPUCLOUD_STUCK_WRITER_S", 30.0)
SHED_LAG_S = env_float("GPUCLOUD_SHED_LAG_S", 0.5)
PAUSED_S = env_float("GPUCLOUD_PAUSED_S", 2.5)
DRAIN_S = env_float("GPUCLOUD_DRAIN_S", 25.0)
LEDGER_COMMIT_S = env_float("GPUCLOUD_LEDGER_COMMIT_S", 5.0)
LEDGER_DAYS = env_int("GPUCLOUD_LEDGER_DAYS", 90, minimum=1)
HEADER_TIMEOUT_S = env_float("GPUCLOUD_HEADER_TIMEOUT_S", 15.0, minimum=0.05)
BODY_TIMEOUT_S = env_float("GPUCLOUD_BODY_TIMEOUT_S", 15.0)
MAX_BODY_BYTES = env_int("GPUCLOUD_MAX_BODY_BYTES", 4 * 1024 * 1024, minimum=1024)
# What people may give keys of their own at the most; a limit of 0 is left to them. Staff may anything.
SELF_SERVICE = {
    "highest_tier": env_choice("GPUCLOUD_SELF_SERVICE_HIGHEST_TIER", TIERS, "default"),
    "requests_per_minute": env_int("GPUCLOUD_SELF_SERVICE_RPM", 600),
    "tokens_per_minute": env_int("GPUCLOUD_SELF_SERVICE_TPM", 0),
    "concurrent_requests": env_int("GPUCLOUD_SELF_SERVICE_CONCURRENT", 0),
    "max_tokens": env_int("GPUCLOUD_SELF_SERVICE_MAX_TOKENS", 0),
    "monthly_tokens": env_int("GPUCLOUD_SELF_SERVICE_MONTHLY_TOKENS", 0),
}
KEY_POLL_S = env_float("GPUCLOUD_KEY_POLL_S", 0.5, minimum=0.01)
NODE = env_str("GPUCLOUD_NODE", "node-1")
WORKER_TOKEN = env_secret("GPUCLOUD_WORKER_TOKEN")
REQUEST_LOG = env_bool("GPUCLOUD_REQUEST_LOG", True)
DEMO_EMAIL = "demo@example.com"
