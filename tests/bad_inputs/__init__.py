"""Malformed and hostile requests, and what is expected of each: rows of two files, run by
`tests/acceptance/test_bad_inputs.py` over real sockets against a real server with real workers.

- `shared.jsonl` came from outside and stays as it is; `ours.jsonl` is of the same format: `id, method,
  path, auth, headers, body, expect_status, expect_error_code, expect_error_param, note`.
- `rows` reads them; `cast` makes the users, keys and tokens they talk about; `stage` is the server with
  these; `bodies` builds what `$gen` describes; `wire` speaks HTTP, and what is nearly HTTP; `workers`
  plays the rows about worker sockets; `scenes` those that are more than one request.
"""
