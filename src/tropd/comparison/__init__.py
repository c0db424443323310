"""Compare methods over seeds and settings at one budget of student-written tokens: `tropd compare PLAN --out DIR`."""
