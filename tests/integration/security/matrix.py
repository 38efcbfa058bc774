"""Who may do what: every URL, every method, every kind of caller, and the status that they get.

Whatever a URL names is Alice's: her key, her request, her user. Columns of `SITE`, from the left: nobody;
by session Alice, Bob (another tenant) and Charlie (staff); the same three by access token; Alice by her
API key. `*` is every method that no other line of the URL names. A query is a line of its own.
"""

from __future__ import annotations

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
CALLERS = ("nobody", "alice", "bob", "staff", "alice-jwt", "bob-jwt", "staff-jwt", "alice-key")

#                                                    nobody   session        token          key
#                                                             A   B   staff  A   B   staff
SITE = """
/                                         GET HEAD   302      200 200 200    302 302 302    302
/                                         *          405      405 405 405    405 405 405    405
/login/                                   *          200      302 302 302    200 200 200    200
/login/                                   PATCH      405      302 302 302    405 405 405    405
/login/                                   DELETE     405      302 302 302    405 405 405    405
/login/                                   TRACE      405      302 302 302    405 405 405    405
/logout/                                  POST       302      302 302 302    302 302 302    302
/logout/                                  OPTIONS    200      200 200 200    200 200 200    200
/logout/                                  *          405      405 405 405    405 405 405    405
/register/                                *          200      302 302 302    200 200 200    200
/register/                                PATCH      405      302 302 302    405 405 405    405
/register/                                DELETE     405      302 302 302    405 405 405    405
/register/                                TRACE      405      302 302 302    405 405 405    405
/password/                                *          302      200 200 200    302 302 302    302
/password/                                PATCH      302      405 405 405    302 302 302    302
/password/                                DELETE     302      405 405 405    302 302 302    302
/password/                                TRACE      302      405 405 405    302 302 302    302
/docs/                                    GET HEAD   200      200 200 200    200 200 200    200
/docs/                                    *          405      405 405 405    405 405 405    405
/docs/<path:name>/                        GET HEAD   200      200 200 200    200 200 200    200
/docs/<path:name>/                        *          405      405 405 405    405 405 405    405

/api/auth/register                        POST       201      201 201 201    201 201 201    201
/api/auth/register                        *          405      405 405 405    405 405 405    405
/api/auth/login                           POST       200      200 200 200    200 200 200    200
/api/auth/login                           *          405      405 405 405    405 405 405    405
/api/auth/refresh                         POST       200      200 200 200    200 200 200    200
/api/auth/refresh                         *          405      405 405 405    405 405 405    405
/api/auth/logout                          POST       204      204 204 204    204 204 204    204
/api/auth/logout                          *          405      405 405 405    405 405 405    405
/api/auth/me                              GET HEAD   401      401 401 401    200 200 200    401
/api/auth/me                              *          401      401 401 401    405 405 405    401
/api/auth/password                        POST       401      401 401 401    200 200 200    401
/api/auth/password                        *          401      401 401 401    405 405 405    401

/api/keys                                 GET HEAD   401      401 401 401    200 200 200    401
/api/keys                                 POST       401      401 401 401    201 201 201    401
/api/keys                                 *          401      401 401 401    405 405 405    401
/api/keys/<int:key_id>                    GET HEAD   401      401 401 401    200 404 404    401
/api/keys/<int:key_id>                    PATCH      401      401 401 401    200 404 404    401
/api/keys/<int:key_id>                    DELETE     401      401 401 401    204 404 404    401
/api/keys/<int:key_id>                    *          401      401 401 401    405 405 405    401
/api/keys/<int:key_id>/rotate             POST       401      401 401 401    200 404 404    401
/api/keys/<int:key_id>/rotate             *          401      401 401 401    405 405 405    401

/api/usage                                GET HEAD   401      401 401 401    200 200 200    401
/api/usage                                *          401      401 401 401    405 405 405    401
/api/usage?format=csv                     GET        401      401 401 401    200 200 200    401
/api/usage?key=<int:key_id>               GET        401      401 401 401    200 200 200    401
/api/usage?by=user                        GET        401      401 401 401    403 403 200    401
/api/usage?user_id=<alice>                GET        401      401 401 401    403 403 200    401
/api/usage?user_id=<alice>&format=csv     GET        401      401 401 401    403 403 200    401
/api/requests                             GET HEAD   401      401 401 401    200 200 200    401
/api/requests                             *          401      401 401 401    405 405 405    401
/api/requests?key=<int:key_id>            GET        401      401 401 401    200 200 200    401
/api/requests?user_id=<alice>             GET        401      401 401 401    403 403 200    401
/api/requests/<slug:request_id>           GET HEAD   401      401 401 401    200 404 200    401
/api/requests/<slug:request_id>           *          401      401 401 401    405 405 405    401
/api/monitoring/metrics                   GET HEAD   401      401 401 401    200 200 200    401
/api/monitoring/metrics                   *          401      401 401 401    405 405 405    401
/api/monitoring/metrics?user_id=<alice>   GET        401      401 401 401    403 403 200    401
/api/monitoring/workers                   GET HEAD   401      401 401 401    200 200 200    401
/api/monitoring/workers                   *          401      401 401 401    405 405 405    401
/api/monitoring/queue                     GET HEAD   401      401 401 401    200 200 200    401
/api/monitoring/queue                     *          401      401 401 401    405 405 405    401

/api/workers/<slug:worker_id>/cordon      POST       401      401 401 401    403 403 200    401
/api/workers/<slug:worker_id>/cordon      *          401      401 401 401    403 403 405    401
/api/workers/<slug:worker_id>/uncordon    POST       401      401 401 401    403 403 200    401
/api/workers/<slug:worker_id>/uncordon    *          401      401 401 401    403 403 405    401
/api/workers/<slug:worker_id>/drain       POST       401      401 401 401    403 403 200    401
/api/workers/<slug:worker_id>/drain       *          401      401 401 401    403 403 405    401
/api/workers/<slug:worker_id>/evict       POST       401      401 401 401    403 403 200    401
/api/workers/<slug:worker_id>/evict       *          401      401 401 401    403 403 405    401
/api/worker-tokens                        GET HEAD   401      401 401 401    403 403 200    401
/api/worker-tokens                        POST       401      401 401 401    403 403 201    401
/api/worker-tokens                        *          401      401 401 401    403 403 405    401
/api/worker-tokens/<int:token_id>         DELETE     401      401 401 401    403 403 204    401
/api/worker-tokens/<int:token_id>         *          401      401 401 401    403 403 405    401

/api/schema                               GET HEAD   200      200 200 200    200 200 200    200
/api/schema                               *          405      405 405 405    405 405 405    405
/api/docs                                 GET HEAD   200      200 200 200    200 200 200    200
/api/docs                                 *          405      405 405 405    405 405 405    405
/api(?:/|$)                               *          404      404 404 404    404 404 404    404
"""

ADMIN_MODELS = {
    "accounts/user": "list add change history password",
    "accounts/apikey": "list change history",
    "cluster/worker": "list look history",
    "cluster/workertoken": "list change history",
    "inference/request": "list look history",
    "inference/usagerollup": "list look history",
    "inference/latencyhistogram": "list look history",
    "inference/keytotal": "list look history",
    "inference/ledgercounter": "list look history",
    "admin/logentry": "list look history",
    "auth/group": "list add change delete history",
}
"""What a superuser may do with the rows of each model; `look` is the form without a button. What is not
named is 403, for staff without rights everything is but the log, and anybody else is sent to the login."""
FOR_ALL_STAFF = {"admin/logentry"}

ADMIN_SITE = {
    "/admin/": "200",
    "/admin/login/": "open",
    "/admin/logout/": "405",
    "/admin/password_change/": "302",
    "/admin/password_change/done/": "200",
    "/admin/autocomplete/": "403",
    "/admin/jsi18n/": "200",
    "/admin/r/<path:content_type_id>/<path:object_id>/": "404",
    "/admin/(?P<app_label>)/": "404",
    "/admin/(?P<url>.*)": "404",
}
"""What GET of the admin's other pages answers a superuser; `open` are those that anybody may load."""

DATA_PLANE = {
    "/v1/models": {"GET": 200},
    "/v1/models/llama-3-8b": {"GET": 200},
    "/v1/chat/completions": {"POST": 200},
}
"""What an API key gets. By any other credential, or none, it is 401, and any other method is 405 for all."""

PROBES = {"/healthz": 200, "/readyz": 200}

#                       nobody  session  session, foreign page  token  API key  worker token  the same from a page
SOCKETS = """
/ws/worker/             403     403      403                    403    403      101           403
/ws/panels/             403     101      403                    403    403      403           403
/ws/nowhere/            403     403      403                    403    403      403           403
"""
