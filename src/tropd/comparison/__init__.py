"""Methods × seeds × settings side by side at one budget of student-written tokens: `tropd compare PLAN --out DIR`."""
