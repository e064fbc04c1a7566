"""A package, so that tests can share helpers by their full name (tests.parity.evaluation_kit)."""
