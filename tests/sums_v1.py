"""A taskset of `verifiers`, as a user's package would have it."""

import verifiers.v1 as vf

__all__ = ["Sums"]


class SumData(vf.TaskData):
    answer: str


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=0.75)
    async def right(self, trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.25)
    async def short(self, trace) -> float:
        return float(len(trace.last_reply) < 5)


class Sums(vf.Taskset[SumTask]):
    def load(self):
        for number in range(40):
            yield SumTask(SumData(prompt=f"{number} + 1 =", answer=str(number + 1)))
