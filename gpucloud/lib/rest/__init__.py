"""What every endpoint under `/api` shares: errors, JSON bodies, query parameters, pages, the schema.

Nothing here knows an app; each app's `api` module is views on top of this.
"""
