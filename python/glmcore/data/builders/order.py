"""The order of things that need each other: each after what it needs, circles kept together."""

import heapq
from collections.abc import Sequence


def dependency_order(needs: Sequence[Sequence[int]]) -> list[int]:
    """All of `range(len(needs))`, each after what it needs.

    What needs each other in a circle stays together, in the order of `circle_order`. Otherwise things keep the order
    of their numbers, and what is needed comes right before the first that needs it. O(n + e log e) time.

    Args:
        needs: For each number, those that it needs; repetitions and itself do not matter.
    """
    groups = strong_components(needs)
    group_of = [0] * len(needs)
    for number, group in enumerate(groups):
        for member in group:
            group_of[member] = number
    wanted = [
        sorted({group_of[target] for member in group for target in needs[member]} - {number}, key=lambda g: groups[g])
        for number, group in enumerate(groups)
    ]
    order: list[int] = []
    done = [False] * len(groups)
    for root in sorted(range(len(groups)), key=lambda number: groups[number]):
        if done[root]:
            continue
        done[root] = True
        stack = [(root, iter(wanted[root]))]
        while stack:
            number, waiting = stack[-1]
            following = next((group for group in waiting if not done[group]), None)
            if following is None:
                order += circle_order(groups[number], needs)
                stack.pop()
            else:
                done[following] = True
                stack.append((following, iter(wanted[following])))
    return order


def circle_order(members: list[int], needs: Sequence[Sequence[int]]) -> list[int]:
    """Things that need each other: next is always the one with the fewest needs still to come, then the least number.

    A simple way to break few of the needs; breaking the fewest possible is NP-hard.
    """
    if len(members) == 1:
        return members
    inside = set(members)
    waiting = {member: {need for need in needs[member] if need in inside} - {member} for member in members}
    needed_by: dict[int, list[int]] = {member: [] for member in members}
    for member in members:
        for need in waiting[member]:
            needed_by[need].append(member)
    heap = [(len(waiting[member]), member) for member in members]
    heapq.heapify(heap)
    order: list[int] = []
    while heap:
        count, member = heapq.heappop(heap)
        if member not in waiting or count != len(waiting[member]):
            continue  # an entry from before a need was met
        del waiting[member]
        order.append(member)
        for other in needed_by[member]:
            if other in waiting:
                waiting[other].discard(member)
                heapq.heappush(heap, (len(waiting[other]), other))
    return order


def strong_components(needs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Groups of numbers that need each other, directly or not, each sorted; no recursion, O(n + e).

    Source: Tarjan, Depth-first search and linear graph algorithms, SIAM J. Comput. 1 (1972).
    """
    num = len(needs)
    unseen = num
    index = [unseen] * num
    low = [0] * num
    on_path = [False] * num
    path: list[int] = []
    groups: list[list[int]] = []
    count = 0
    for root in range(num):
        if index[root] != unseen:
            continue
        stack = [(root, iter(needs[root]))]
        index[root] = low[root] = count
        count += 1
        path.append(root)
        on_path[root] = True
        while stack:
            node, waiting = stack[-1]
            for need in waiting:
                if index[need] == unseen:
                    index[need] = low[need] = count
                    count += 1
                    path.append(need)
                    on_path[need] = True
                    stack.append((need, iter(needs[need])))
                    break
                if on_path[need]:
                    low[node] = min(low[node], index[need])
            else:
                stack.pop()
                if stack:
                    parent = stack[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    group: list[int] = []
                    while not group or group[-1] != node:
                        group.append(path.pop())
                        on_path[group[-1]] = False
                    groups.append(sorted(group))
    return groups
