"""The rows of this app: people and their API keys.

No secret is stored: what a key's row holds of it is in `gpucloud.lib.credential`. Rows are
written by `services` and read by `selectors`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractBaseUser, BaseUserManager, PermissionsMixin
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone

from gpucloud.lib.credential import Credential

MAX_REQUESTS_PER_MINUTE = 1_000_000


def normalize_email(email: str) -> str:
    """Return the one spelling under which an address is stored and looked up."""
    return email.strip().lower()


class UserManager(BaseUserManager["User"]):
    """Makes users, and finds them by their address in any case."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        """Create a user; without a password it cannot log in by one."""
        user = self.model(email=normalize_email(email), **fields)
        user.set_password(password)
        user.full_clean()
        user.save(using=self._db)
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


class Tier(models.TextChoices):
    """The queue class of a key's requests, by the words of `cluster.domain.Tier`."""

    PRIORITY = "priority"
    DEFAULT = "default"
    FLEX = "flex"
    BATCH = "batch"


class ApiKey(Credential):
    """A key of the data plane."""

    user = models.ForeignKey(User, on_delete=models.PROTECT, related_name="api_keys")
    tier = models.CharField(
        "default tier", max_length=8, choices=Tier, default=Tier.DEFAULT, help_text="For requests that name none."
    )
    highest_tier = models.CharField(
        max_length=8, choices=Tier, default=Tier.DEFAULT, help_text="A request that asks for more is served in this."
    )
    requests_per_minute = models.PositiveIntegerField(
        default=60, validators=[MaxValueValidator(MAX_REQUESTS_PER_MINUTE)], help_text="0 means no limit."
    )

    class Meta(Credential.Meta):
        verbose_name = "API key"
        constraints = [
            models.CheckConstraint(name="api_key_tier_is_known", condition=models.Q(tier__in=Tier.values)),
            models.CheckConstraint(
                name="api_key_highest_tier_is_known", condition=models.Q(highest_tier__in=Tier.values)
            ),
        ]

    def clean(self) -> None:
        """Refuse a default tier that the key may not use."""
        order = Tier.values
        if (
            self.tier in order
            and self.highest_tier in order
            and order.index(self.tier) < order.index(self.highest_tier)
        ):
            raise ValidationError(
                {"tier": f"The default tier cannot be above the highest tier, which is {self.highest_tier}."}
            )
