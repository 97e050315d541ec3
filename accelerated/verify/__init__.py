"""Compare the two implementations; the only folder that imports both."""
