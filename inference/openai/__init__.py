"""The data plane: OpenAI's API as plain ASGI endpoints.

Read `endpoints` for the way of a request, `schemas` for what may be asked, `chunks` for what is
answered, `errors` for what is refused. Nothing here imports Django's request or response.
"""
