"""Cannot be imported."""

QUOTIENT = 1 // 0
