//! Rollouts through the buffer on one core, in memory and on disk: admission, tokens, end, commit, lease, acknowledgement.
//!
//! A step is what a trainer's batch needs. Bytes are those that come out: 13 for a token (id, mask, log-probability,
//! version). On disk each step waits for the disk twice, for its samples and for its acknowledgement.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use glmcore_trajectory::{Admission, Buffer, Commit, Options, Tokens};

const ROLLOUTS: u32 = 8;
const BYTES_PER_TOKEN: usize = 13;

fn one_step(buffer: &Buffer, groups: usize, version: u64, tokens: &Tokens<'_>) {
    for _ in 0..groups {
        let admission = Admission::new("task", ROLLOUTS, version);
        let group = buffer.admit(&admission, None, Commit::Later).expect("the buffer is empty");
        for rollout in buffer.rollouts(group).expect("just admitted") {
            buffer.append_tokens(rollout, tokens).expect("running");
            buffer.finish(rollout, 1.0, "stop", b"", Commit::Later).expect("running");
        }
    }
    buffer.flush().expect("the disk has room");
    let lease = buffer.take(groups, version, None).expect("fresh").expect("complete");
    buffer.ack(&[lease.id], None).expect("leased");
}

fn trajectory(c: &mut Criterion) {
    let mut group = c.benchmark_group("trajectory_step");
    group.sample_size(20);
    for (length, groups) in [(32_usize, 1024_usize), (1024, 128), (16_384, 16)] {
        let options = Options { groups_per_step: groups, ..Options::new(1 << 20, 0) };
        let (ids, loss_mask, logprobs) = (vec![7; length], vec![1; length], vec![-0.5; length]);
        let rollouts = groups * ROLLOUTS as usize;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let buffers = [
            ("memory", Buffer::in_memory(options).expect("the limits make sense")),
            ("disk", Buffer::open(directory.path(), options).expect("nobody else has it")),
        ];
        for (name, buffer) in buffers {
            let mut version = 0;
            let mut run = |group: &mut criterion::BenchmarkGroup<'_, _>, unit: &str, throughput| {
                group.throughput(throughput);
                group.bench_function(BenchmarkId::new(format!("{name}_{unit}"), length), |b| {
                    b.iter(|| {
                        let (ids, loss_mask, logprobs) = (&ids[..], &loss_mask[..], &logprobs[..]);
                        let policy_version = version;
                        let tokens =
                            Tokens { ids, loss_mask, logprobs, policy_version, ends_turn: true };
                        one_step(&buffer, groups, version, &tokens);
                        version += 1;
                    });
                });
            };
            if length < 1000 {
                run(&mut group, "rollouts", Throughput::Elements(rollouts as u64));
            } else {
                let bytes = rollouts * length * BYTES_PER_TOKEN;
                run(&mut group, "bytes", Throughput::Bytes(bytes as u64));
            }
        }
    }
    group.finish();
}

criterion_group!(benches, trajectory);
criterion_main!(benches);
