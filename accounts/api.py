"""What of accounts is under `/api/auth`: registering, logging in and out, and who one is."""

from __future__ import annotations

from typing import Any

import msgspec
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from accounts import logins, passwords
from gpucloud.lib.clientip import client_ip
from gpucloud.lib.rest.serializers import Body
from gpucloud.lib.rest.views import ApiView

MAX_TOKEN_CHARS = 4096


class InvalidRefreshToken(AuthenticationFailed):
    """The token renews nothing."""

    default_code = "token_not_valid"
    default_detail = "This refresh token is not valid, or not any more. Log in again."


class Credentials(Body):
    """What one logs in with."""

    email = serializers.CharField(max_length=passwords.MAX_EMAIL_CHARS)
    password = serializers.CharField(max_length=passwords.MAX_PASSWORD_CHARS, trim_whitespace=False)


class Registration(Credentials):
    """What an account is made of."""

    email = serializers.EmailField(max_length=passwords.MAX_EMAIL_CHARS)


class RefreshBody(Body):
    """A refresh token."""

    refresh = serializers.CharField(max_length=MAX_TOKEN_CHARS)


class LogoutBody(Body):
    """The refresh token of the login that is over; without one it is the access token's."""

    refresh = serializers.CharField(max_length=MAX_TOKEN_CHARS, required=False)


class PasswordBody(Body):
    """The password so far, and the next."""

    old_password = serializers.CharField(max_length=passwords.MAX_PASSWORD_CHARS, trim_whitespace=False)
    new_password = serializers.CharField(max_length=passwords.MAX_PASSWORD_CHARS, trim_whitespace=False)


class RegisteredAccount(serializers.Serializer[Any]):
    """A new account."""

    id = serializers.IntegerField()
    email = serializers.EmailField()


class Account(RegisteredAccount):
    """Somebody as they may see themselves."""

    is_staff = serializers.BooleanField()
    created_at = serializers.DateTimeField()


class RenewedTokens(serializers.Serializer[Any]):
    """The next pair of tokens; the refresh token that was shown is used up."""

    access = serializers.CharField()
    refresh = serializers.CharField()


class Tokens(RenewedTokens):
    """A pair of tokens, and how many seconds the access token lives."""

    expires_in = serializers.IntegerField()


class PublicView(ApiView):
    """For callers who have no token yet. One that is sent along is not looked at unless it is needed."""

    permission_classes = ()
    throttle_classes = ()

    def perform_authentication(self, request: Request) -> None:
        """Wait until somebody asks who it is: a token that has run out must not keep anybody from renewing it."""


class RegisterView(PublicView):
    """New accounts."""

    @extend_schema(operation_id="register", request=Registration, responses={201: RegisteredAccount}, auth=[])
    def post(self, request: Request) -> Response:
        """Create an account."""
        body = self.read_body(Registration)
        try:
            user = passwords.register_user(**body, ip=client_ip(request))
        except passwords.RegistrationClosed:
            raise PermissionDenied(
                "Accounts are made by the operators of this cluster.", "registration_closed"
            ) from None
        return Response(RegisteredAccount(user).data, 201)


class LoginView(PublicView):
    """Passwords in, tokens out."""

    @extend_schema(operation_id="log_in", request=Credentials, responses=Tokens, auth=[])
    def post(self, request: Request) -> Response:
        """Log in and get a pair of tokens."""
        body = self.read_body(Credentials)
        try:
            pair = passwords.log_in(**body, ip=client_ip(request))
        except passwords.UnableToLogIn:
            raise AuthenticationFailed("No active account has this email and password together.") from None
        return Response(msgspec.structs.asdict(pair))


class RefreshView(PublicView):
    """Refresh tokens in, newer tokens out."""

    @extend_schema(operation_id="refresh_tokens", request=RefreshBody, responses=RenewedTokens, auth=[])
    def post(self, request: Request) -> Response:
        """Take a refresh token for the next pair. One that was used before ends its whole login."""
        body = self.read_body(RefreshBody)
        try:
            pair = logins.refresh_login(**body, ip=client_ip(request))
        except logins.UnableToRefresh:
            raise InvalidRefreshToken from None
        return Response({"access": pair.access, "refresh": pair.refresh})


class LogoutView(PublicView):
    """The end of a login."""

    @extend_schema(operation_id="log_out", request=LogoutBody, responses={204: None})
    def post(self, request: Request) -> Response:
        """End a login, and with it all of its tokens."""
        refresh = self.read_body(LogoutBody).get("refresh")
        token: Any = None if refresh else request.auth
        try:
            if refresh:
                logins.end_login(refresh=refresh)
            elif token:
                logins.end_login_of(token=token)
            else:
                raise NotAuthenticated("Send the refresh token in the body, or an access token.")
        except logins.UnableToRefresh:
            raise InvalidRefreshToken from None
        return Response(status=204)


class MeView(ApiView):
    """Whoever asks."""

    @extend_schema(operation_id="get_me", responses=Account)
    def get(self, request: Request) -> Response:
        """Return the account that the token belongs to."""
        return Response(Account(request.user).data)


class PasswordView(ApiView):
    """The caller's password."""

    @extend_schema(operation_id="change_password", request=PasswordBody, responses=Tokens)
    def post(self, request: Request) -> Response:
        """Change the password. All tokens and sessions end; the answer has the first tokens of a new login."""
        user: Any = request.user
        body = self.read_body(PasswordBody)
        pair = passwords.change_password_and_log_in(user=user, **body, ip=client_ip(request))
        return Response(msgspec.structs.asdict(pair))
