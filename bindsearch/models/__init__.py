"""The model: stems, trunk, heads, towers, weights, spaces."""
