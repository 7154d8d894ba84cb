"""The control plane over HTTP: JSON API, pages, metrics. Thin: every route translates a declared operation."""
