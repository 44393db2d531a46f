"""Refusing options that cannot be meant."""


def require(condition: bool, name: str, found: object, wanted: str) -> None:
    """
    Raises:
        ValueError: the condition does not hold; says what `name` is and what was wanted.
    """
    if not condition:
        raise ValueError(f"{name} is {found}, wanted {wanted}.")
