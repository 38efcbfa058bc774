"""Users and keys in the admin. It writes through `services` and deletes nothing.

A key cannot be added here: its secret is shown once, by the command `createkey`, and must not
wait in a session or a message for the next page.

The `type: ignore`s: Django's admin classes are generic to the type checker only.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.auth.admin import GroupAdmin as BaseGroupAdmin
from django.contrib.auth.admin import UserAdmin as BaseUserAdmin
from django.contrib.auth.forms import AdminUserCreationForm, UserChangeForm
from django.contrib.auth.models import Group
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest

from accounts import services
from accounts.forms import AdminLoginForm
from accounts.models import ApiKey, User
from gpucloud.lib.admin import AuditedByServices, RevokedFilter, act_on_each, actor_in
from gpucloud.lib.audit import Actor, record

admin.site.login_form = AdminLoginForm

WHICH_KEY = ("masked", "user", "test")
KEY_HISTORY = ("created_at", "revoked_at", "last_used_at", "previous_masked", "previous_until")
RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")
"""What of a user says what else it may do."""


class UserAddForm(AdminUserCreationForm):  # type: ignore[type-arg]
    """A new user: an address, and a password or none."""

    class Meta:
        model = User
        fields = ("email",)


class UserEditForm(UserChangeForm):  # type: ignore[type-arg]
    """A user as it is; the password has a form of its own."""

    class Meta:
        model = User
        fields = "__all__"


@admin.register(User)
class UserAdmin(AuditedByServices, BaseUserAdmin):  # type: ignore[type-arg]
    """People: who may log in, and who is staff."""

    form = UserEditForm
    add_form = UserAddForm
    fieldsets = (
        (None, {"fields": ("email", "password")}),
        ("Permissions", {"fields": ("is_active", "is_staff", "is_superuser", "groups", "user_permissions")}),
        ("Dates", {"fields": ("created_at", "last_login")}),
    )
    add_fieldsets = ((None, {"classes": ("wide",), "fields": ("email", "usable_password", "password1", "password2")}),)
    readonly_fields = ("created_at", "last_login")
    list_display = ("email", "is_active", "is_staff", "created_at", "last_login")
    list_filter = ("is_active", "is_staff", "is_superuser")
    search_fields = ("email",)
    ordering = ("email",)

    def save_model(self, request: HttpRequest, obj: User, form: ModelForm[User], change: bool) -> None:
        """Store the user by the service, so that keys of a switched-off one stop at once."""
        services.save_user(user=obj, actor=actor_in(request))

    def save_related(self, request: HttpRequest, form: ModelForm[User], formsets: Any, change: bool) -> None:
        """Store groups and permissions, and put on record which they were and are."""
        before = _list_rights(form.instance)
        super().save_related(request, form, formsets, change)
        after = _list_rights(form.instance)
        if changes := {name: (before[name], after[name]) for name in after if before[name] != after[name]}:
            record(actor=actor_in(request), row=form.instance, did="Changed:", changes=changes)

    def log_change(self, request: HttpRequest, obj: User, message: Any) -> Any:
        """Put a new password on record; the form for it passes no service."""
        if request.resolver_match and request.resolver_match.url_name == "auth_user_password_change":
            record(actor=actor_in(request), row=obj, did="Password changed.")

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        """Let nobody make a superuser here (`createsuperuser` does), and only those hand out rights."""
        kept = ("is_superuser",) if request.user.is_superuser else RIGHTS
        return (*self.readonly_fields, *kept)

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Keep superusers, their passwords among the rest, to superusers."""
        beyond = obj is not None and obj.is_superuser and not request.user.is_superuser
        return super().has_change_permission(request, obj) and not beyond

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        """Users are switched off, never deleted: the ledger refers to them."""
        return False


admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(BaseGroupAdmin):
    """Rights by the bundle: for superusers, as others could put rights of their own into one."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.is_superuser)

    def has_view_permission(self, request: HttpRequest, obj: Group | None = None) -> bool:
        return bool(request.user.is_superuser)

    has_add_permission = has_module_permission
    has_change_permission = has_delete_permission = has_view_permission


@admin.register(ApiKey)
class ApiKeyAdmin(AuditedByServices, admin.ModelAdmin):  # type: ignore[type-arg]
    """Keys: whose, on which terms, and whether they still work."""

    list_display = (
        "masked",
        "name",
        "user",
        "tier",
        "highest_tier",
        "requests_per_minute",
        "created_at",
        "expires_at",
        "revoked_at",
        "last_used_at",
    )
    list_filter = (RevokedFilter, "test", "tier", "highest_tier", "created_at")
    list_select_related = ("user",)
    show_full_result_count = False
    search_fields = ("prefix", "last4", "name", "user__email")
    fields = (*WHICH_KEY, *services.TERMS, *KEY_HISTORY)
    readonly_fields = (*WHICH_KEY, *KEY_HISTORY)
    actions = ("revoke_selected",)

    @admin.display(description="key", ordering="prefix")
    def masked(self, key: ApiKey) -> str:
        """Show the key as prefix and last characters."""
        return key.masked

    @admin.action(description="Revoke selected keys", permissions=["change"])
    def revoke_selected(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        """Refuse the keys from now on, for good."""
        act_on_each(self, request, queryset, _revoke, summary="Keys revoked")

    def save_model(self, request: HttpRequest, obj: ApiKey, form: ModelForm[ApiKey], change: bool) -> None:
        """Store the key by the service."""
        services.save_key(key=obj, actor=actor_in(request))

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Keys are made where their secret can be shown once."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Keys are revoked, never deleted: the ledger refers to them."""
        return False


def _list_rights(user: User) -> dict[str, str]:
    groups = user.groups.values_list("name", flat=True)
    permissions = user.user_permissions.order_by("codename").values_list("codename", flat=True)
    return {"groups": ", ".join(groups) or "none", "permissions": ", ".join(permissions) or "none"}


def _revoke(key: ApiKey, actor: Actor) -> bool:
    return services.revoke_key(key=key, actor=actor)
