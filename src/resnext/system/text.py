"""Numbers and nouns in messages."""


def counted(count: int, noun: str) -> str:
    """A number and its noun: "1 image", "2 images", "1,000 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
