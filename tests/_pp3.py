from pipeline_runs import *
from distributed import run_ranks
import time

torch.set_num_threads(1)
CASES2 = [
    Case(
        {"pipeline": 2},
        {"num_nextn_predict_layers": 0},
        {"matrices": "adamw", "max_grad_norm": 1e9},
        dtype=torch.float32,
    ),
    Case({"pipeline": 2}),
    Case(
        {"pipeline": 2, "pipeline_schedule": "gpipe", "pipeline_layers": [1, 2]},
        {"tie_word_embeddings": True},
        num_micro_batches=1,
    ),
    Case(
        {"pipeline": 2, "pipeline_schedule": "interleaved", "stages_per_rank": 2},
        {"num_hidden_layers": 5},
        weights=LossWeights(mtp_loss_weight=0.0),
    ),
]
CASES4 = [
    Case({"pipeline": 4}, {"num_hidden_layers": 4}),
    Case({"pipeline": 2, "data": 2}),
    Case(
        {"pipeline": 2, "data": 2, "pipeline_schedule": "interleaved", "stages_per_rank": 2},
        {"num_hidden_layers": 5, "tie_word_embeddings": True},
    ),
]
from dataclasses import replace

if __name__ == "__main__":
    for n, cases in ((2, CASES2), (4, CASES4)):
        t = time.time()
        outs = run_ranks(n, train_all, cases, timeout=200)
        print("time", time.time() - t)
        for i, c in enumerate(cases):
            alone = train(replace(c, parallel={}))
            print(c.parallel, c.model)
            for a, b in zip(alone.losses, outs[0][i].losses):
                print("  ", a, b)
            for o in outs:
                print("  ", alone.validation, o[i].validation)
                print(
                    "  ",
                    max((float(abs(w - alone.weights[k]).max()), k) for k, w in o[i].weights.items()),
                    all(np.array_equal(x, y) for x, y in zip(o[i].loads, alone.loads)),
                )
