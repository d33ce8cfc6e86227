//! Rollouts through the buffer, in memory and on disk: admission, tokens, end, lease, acknowledgement.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_trajectory::{Buffer, Limits, Tokens};

const GROUPS: usize = 16;
const ROLLOUTS: u32 = 8;

fn one_step(buffer: &Buffer, version: u64, tokens: &Tokens<'_>) {
    for _ in 0..GROUPS {
        let group = buffer.admit("task", ROLLOUTS, version).expect("the buffer is empty");
        for rollout in buffer.rollouts(group).expect("just admitted") {
            buffer.append_tokens(rollout, tokens, version).expect("running");
            buffer.finish(rollout, 1.0, "stop").expect("running");
        }
    }
    let groups = buffer.take(GROUPS, version, None).expect("fresh").expect("complete");
    let ids: Vec<u64> = groups.iter().map(|group| group.id).collect();
    buffer.ack(&ids).expect("leased");
}

fn trajectory(c: &mut Criterion) {
    let limits = Limits { capacity: 1024, max_staleness: 0, groups_per_step: GROUPS };
    let mut group = c.benchmark_group("trajectory_step");
    for length in [64_usize, 1024, 16_384] {
        let (ids, loss_mask, logprobs) = (vec![7; length], vec![1; length], vec![-0.5; length]);
        let tokens = Tokens { ids: &ids, loss_mask: &loss_mask, logprobs: &logprobs };
        group.throughput(Throughput::Elements((GROUPS * ROLLOUTS as usize * length) as u64));
        let directory = tempfile::tempdir().expect("a temporary directory");
        let buffers = [
            ("memory", Buffer::in_memory(limits).expect("limits are positive")),
            ("disk", Buffer::open(directory.path(), limits).expect("nobody else has it")),
        ];
        for (name, buffer) in buffers {
            let mut version = 0;
            group.bench_function(BenchmarkId::new(name, length), |b| {
                b.iter(|| {
                    one_step(&buffer, version, &tokens);
                    version += 1;
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, trajectory);
criterion_main!(benches);
