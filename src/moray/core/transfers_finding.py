"""Looking for copies after the node with the primary ones has died, and choosing new primary copies.

A *search* asks every living node which of some objects it has; an answer, or a node's death, takes the node off the
list. A pull takes the first node that has its object. The owner's question (:class:`Question`) waits for all answers,
names for each object the copy with the smallest tag, and has that node make it the primary one, which is then told of
the others (so that they are freed with it). A node that dies in between is as good as one that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from moray.core.transfers_types import Do, Find, Located, PromoteAt


class Search:
    """Who has which of these objects?"""

    __slots__ = ("asked", "objects", "on_found", "on_over")

    def __init__(
        self, objects: list[bytes], asked: set[bytes], on_found: Callable[[bytes, list[bytes]], None],
        on_over: Callable[[], None],
    ) -> None:  # fmt: skip
        self.objects = objects
        #: Nodes that have not answered.
        self.asked = asked
        #: Called with each answer that is not empty.
        self.on_found = on_found
        #: Called once, when all have answered.
        self.on_over = on_over


class Question:
    """An owner asks where its objects are."""

    __slots__ = ("chosen", "copies", "objects", "process", "request")

    def __init__(self, process: bytes, request: int, objects: list[bytes]) -> None:
        self.process = process
        self.request = request
        self.objects = objects
        #: Object → nodes that have a copy.
        self.copies: dict[bytes, set[bytes]] = {}
        #: Object → node with the new primary copy.
        self.chosen: dict[bytes, bytes] = {}


class Finder:
    """The searches of one node. `own`: its tag; `here`: which of some objects it has itself."""

    def __init__(
        self, own: bytes, do: Do, here: Callable[[list[bytes]], list[bytes]],
        promote: Callable[[bytes, list[bytes]], bool],
    ) -> None:  # fmt: skip
        self._own = own
        self._do = do
        self._here = here
        #: Makes a copy of this node the primary one: (object, other nodes with copies); whether it could.
        self._promote = promote
        #: The other nodes that live.
        self.nodes: dict[bytes, None] = {}
        self._searches: dict[int, Search] = {}
        #: Promotions under way: number → the node, the question, the objects.
        self._promotions: dict[int, tuple[bytes, Question, list[bytes]]] = {}
        self._last = 0

    def search(
        self, objects: list[bytes], on_found: Callable[[bytes, list[bytes]], None], on_over: Callable[[], None],
        without: Iterable[bytes] = (),
    ) -> int:  # fmt: skip
        """Ask all nodes but some; returns the search's number."""
        self._last += 1
        asked = set(self.nodes).difference(without)
        search = self._searches[self._last] = Search(objects, asked, on_found, on_over)
        for node in self.nodes:
            if node in asked:
                self._do(Find(node, self._last, objects))
        number = self._last
        self._look_whether_over(number, search)
        return number

    def cancel(self, number: int) -> None:
        """The answers are not needed any more."""
        self._searches.pop(number, None)

    def locate(self, process: bytes, request: int, objects: list[bytes]) -> None:
        """An owner's question; answered by Located."""
        question = Question(process, request, objects)
        for name in self._here(objects):
            question.copies[name] = {self._own}

        def found(node: bytes, objects: list[bytes]) -> None:
            for name in objects:
                question.copies.setdefault(name, set()).add(node)

        self.search(objects, found, lambda: self._choose(question, list(question.copies)))

    def answered(self, node: bytes, number: int, objects: list[bytes]) -> None:
        """CopiesFound: of a search or of a promotion."""
        if number in self._promotions:
            promoting, question, wanted = self._promotions.pop(number)
            question.chosen.update(dict.fromkeys(objects, promoting))
            # What it has not got any more, another may have.
            left = [name for name in wanted if name not in objects]
            for name in left:
                question.copies[name].discard(promoting)
            self._choose(question, left)
            return
        search = self._searches.get(number)
        if search is None or node not in search.asked:
            return
        search.asked.discard(node)
        if objects:
            search.on_found(node, objects)
        self._look_whether_over(number, search)

    def node_died(self, node: bytes) -> None:
        """It answers nothing any more."""
        self.nodes.pop(node, None)
        for number, search in list(self._searches.items()):
            if node in search.asked:
                search.asked.discard(node)
                self._look_whether_over(number, search)
        for number, (promoting, _, _) in list(self._promotions.items()):
            if promoting == node:
                self.answered(node, number, [])

    def _look_whether_over(self, number: int, search: Search) -> None:
        if not search.asked and self._searches.pop(number, None) is not None:
            search.on_over()

    def _choose(self, question: Question, objects: list[bytes]) -> None:
        by_node: dict[bytes, list[bytes]] = {}
        for name in objects:
            nodes = {node for node in question.copies[name] if node in self.nodes or node == self._own}
            if nodes:
                # A copy here is as good as any, and needs no question.
                by_node.setdefault(self._own if self._own in nodes else min(nodes), []).append(name)
        for node, chosen in by_node.items():
            others = [sorted(question.copies[name] - {node}) for name in chosen]
            self._last += 1
            self._promotions[self._last] = (node, question, chosen)
            if node != self._own:
                self._do(PromoteAt(node, self._last, chosen, others))
        for node, chosen in by_node.items():
            if node == self._own:
                others = [sorted(question.copies[name] - {node}) for name in chosen]
                done = [each for each, rest in zip(chosen, others, strict=True) if self._promote(each, rest)]
                number = next(n for n, (by, which, _) in self._promotions.items() if by == node and which is question)
                self.answered(node, number, done)
                return
        self._look_whether_chosen(question)

    def _look_whether_chosen(self, question: Question) -> None:
        if not any(each is question for _, each, _ in self._promotions.values()):
            nodes = [question.chosen.get(name, b"") for name in question.objects]
            self._do(Located(question.process, question.request, nodes))
