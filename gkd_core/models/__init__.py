"""Networks: architectures by name, one output form, and the folder they are kept in."""
