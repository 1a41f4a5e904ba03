"""What everything stands on: arithmetic of trees, stable functions, sharding, tracing switches."""
