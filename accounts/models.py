"""The rows of this app: people, their API keys, and their logins to the REST API.

No secret is stored: what a key's row holds of it is in `gpucloud.lib.credential`. Rows are
written by `services` and read by `selectors`.
"""

from __future__ import annotations

import unicodedata
from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models, transaction
from django.db.models.functions import Lower
from django.utils import timezone

from gpucloud.lib.audit import ADDITION, COMMAND, record
from gpucloud.lib.credential import Credential
from gpucloud.lib.globs import any_model, validate_globs
from gpucloud.lib.secret import PREFIX_CHARS, mask

MAX_REQUESTS_PER_MINUTE = 1_000_000
MAX_TOKENS_PER_MINUTE = 1_000_000_000
MAX_CONCURRENT_REQUESTS = 100_000
MAX_TOKENS = 1_000_000
MAX_MONTHLY_TOKENS = 10**15


def normalize_email(email: str) -> str:
    """Return the one spelling under which an address is stored and looked up."""
    return unicodedata.normalize("NFKC", email).strip().casefold()


class UserManager(BaseUserManager["User"]):
    """Makes users, and finds them by their address in any case."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a user, on behalf of the command line; without a password it cannot log in by one."""
        user = self.model(email=normalize_email(email), **fields)
        user.set_password(password)
        user.full_clean()
        with transaction.atomic(using=self._db):
            user.save(using=self._db)
            did = "Created, as a superuser." if user.is_superuser else "Created."
            record(actor=COMMAND, row=user, did=did, action=ADDITION)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a user with every permission."""
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> User:
        """Return the user with this address; Django's login looks users up here."""
        return self.get(email=normalize_email(username or ""))


class User(AbstractBaseUser, PermissionsMixin):
    """Somebody who owns keys; staff also see the cluster and the admin."""

    email = models.EmailField("email address", unique=True, error_messages={"unique": "This address is taken."})
    is_staff = models.BooleanField("staff", default=False, help_text="May enter the admin and see every tenant.")
    is_active = models.BooleanField("active", default=True, help_text="Clear it to refuse all keys and logins.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        ordering = ("email",)
        constraints = [
            # With the unique index this makes addresses unique in any case, whoever writes.
            models.CheckConstraint(name="user_email_is_lower_case", condition=models.Q(email=Lower("email"))),
        ]

    def __str__(self) -> str:
        return self.email

    def clean(self) -> None:
        """Bring the address to its stored spelling before it is checked for uniqueness."""
        self.email = normalize_email(self.email)


class ApiLogin(models.Model):
    """One login to the REST API: a family of refresh tokens, of which only the newest may be used.

    Tokens name the row and none is stored: delete it, and all of them are over.
    """

    id = models.CharField(primary_key=True, max_length=32)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_logins")
    newest = models.CharField(max_length=32, help_text="The id of the refresh token that may be used.")
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "API login"

    def __str__(self) -> str:
        return f"{self.user_id} since {self.created_at:%Y-%m-%d %H:%M}"


class Tier(models.TextChoices):
    """The queue class of a key's requests, by the words of `cluster.domain.Tier`."""

    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"
    BATCH = "batch"


class ApiKey(Credential):
    """A key of the data plane: whose it is, what it may ask for, and how much of it.

    After a rotation its previous secret lives on until `previous_until`.
    """

    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="api_keys")
    tier = models.CharField(
        "default tier", max_length=8, choices=Tier, default=Tier.DEFAULT, help_text="For requests that name none."
    )
    highest_tier = models.CharField(
        max_length=8, choices=Tier, default=Tier.DEFAULT, help_text="A request that asks for more is served in this."
    )
    test = models.BooleanField(
        default=False, db_default=False, editable=False, help_text="Simulated workers only, and no budget."
    )
    requests_per_minute = models.PositiveIntegerField(
        default=60, validators=[MaxValueValidator(MAX_REQUESTS_PER_MINUTE)], help_text="0 means no limit."
    )
    tokens_per_minute = models.PositiveIntegerField(
        default=0, db_default=0, validators=[MaxValueValidator(MAX_TOKENS_PER_MINUTE)], help_text="0 means no limit."
    )
    concurrent_requests = models.PositiveIntegerField(
        default=0, db_default=0, validators=[MaxValueValidator(MAX_CONCURRENT_REQUESTS)], help_text="0 means no limit."
    )
    max_tokens = models.PositiveIntegerField(
        default=0,
        db_default=0,
        validators=[MaxValueValidator(MAX_TOKENS)],
        help_text="The most one request may generate; 0 means no cap.",
    )
    monthly_tokens = models.PositiveBigIntegerField(
        default=0,
        db_default=0,
        validators=[MaxValueValidator(MAX_MONTHLY_TOKENS)],
        help_text="Billed tokens, prompt and completion, in a calendar month (UTC); 0 means no budget.",
    )
    previous_prefix = models.CharField(max_length=PREFIX_CHARS, null=True, unique=True, editable=False)  # noqa: DJ001
    previous_digest = models.CharField(max_length=64, default="", db_default="", editable=False)
    previous_last4 = models.CharField(max_length=4, default="", db_default="", editable=False)
    previous_until = models.DateTimeField(null=True, editable=False)
    # The last field, for its name hides the module from what follows.
    models = models.JSONField(
        default=any_model,
        db_default=models.Value(["*"], models.JSONField()),
        validators=[validate_globs],
        help_text='Globs of the model ids it may use: ["llama-*"].',
    )

    class Meta(Credential.Meta):
        verbose_name = "API key"
        constraints = [
            models.CheckConstraint(name="api_key_tier_is_known", condition=models.Q(tier__in=Tier.values)),
            models.CheckConstraint(
                name="api_key_highest_tier_is_known", condition=models.Q(highest_tier__in=Tier.values)
            ),
        ]

    @property
    def previous_masked(self) -> str:
        """How the previous secret is shown while it still works; empty when there is none."""
        return mask(self.previous_prefix, self.previous_last4) if self.previous_prefix else ""

    def clean(self) -> None:
        """Refuse a default tier that the key may not use."""
        order = Tier.values
        known = self.tier in order and self.highest_tier in order
        if known and order.index(self.tier) < order.index(self.highest_tier):
            raise ValidationError(
                {"tier": f"The default tier cannot be above the highest tier, which is {self.highest_tier}."}
            )
