"""One obvious implementation per operation: the specification the fast ones are tested against."""
