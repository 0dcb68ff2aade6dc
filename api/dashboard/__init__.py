"""The dashboard: pages as functions from values to HTML; `api/static` makes them livelier, `api/routes` serves them."""
