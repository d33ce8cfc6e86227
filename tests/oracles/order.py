"""Plain twin of `glmcore.data.builders.order`: reachability by repeated closure, order by recursion."""


def reachable(needs: list[list[int]]) -> list[set[int]]:
    """What each number needs, directly or not."""
    reach = [set(row) for row in needs]
    changed = True
    while changed:
        changed = False
        for row in reach:
            more = set().union(*(reach[other] for other in row)) - row if row else set()
            changed |= bool(more)
            row |= more
    return reach


def dependency_order(needs: list[list[int]]) -> list[int]:
    reach = reachable(needs)
    circles = [sorted({at} | {other for other in reach[at] if at in reach[other]}) for at in range(len(needs))]
    order: list[int] = []

    def visit(at: int) -> None:
        if at in order:
            return
        circle = circles[at]
        outside = {need for member in circle for need in needs[member]} - set(circle)
        for need in sorted(outside, key=lambda need: circles[need]):
            visit(need)
        order.extend(circle_order(circle, needs))

    for at in range(len(needs)):
        visit(at)
    return order


def circle_order(circle: list[int], needs: list[list[int]]) -> list[int]:
    left = set(circle)
    order: list[int] = []
    while left:
        following = min(left, key=lambda at: (len(left & set(needs[at]) - {at}), at))
        order.append(following)
        left.remove(following)
    return order
