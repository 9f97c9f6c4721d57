"""What a page is made of, read by the standard library's parser: for the checks that need no browser."""

from html.parser import HTMLParser

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Structure(HTMLParser):
    """Elements with their attributes, and what is wrong with how they lie in each other."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[list[str]] = []
        """Of each element: the names of its ancestors."""
        self.children: dict[int, list[int]] = {}
        self.wrong: list[str] = []
        self.texts: list[str] = []
        self._open: list[tuple[str, int]] = []
        self.feed(text)
        self.close()
        self.wrong += [f"never closed: {name}" for name, _ in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.wrong.append(f"an attribute twice: {tag} {names}")
        number = len(self.elements)
        self.elements.append((tag, dict(attrs)))
        self.inside.append([name for name, _ in self._open])
        if self._open:
            self.children.setdefault(self._open[-1][1], []).append(number)
        if tag not in VOID:
            self._open.append((tag, number))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1][0] != tag:
            self.wrong.append(f"</{tag}> closes {self._open[-1:]}")
            return
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1][0] not in ("script", "style"):
            self.texts.append(data)

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        """The attributes of every element of these names."""
        return [attributes for tag, attributes in self.elements if tag in tags]
