"""The same work, written as users of other libraries would write it."""
