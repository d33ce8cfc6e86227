//! Work over a batch of texts on as many threads as asked for.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of text that a thread takes at a time: far more work than taking them, far less than a batch.
const BYTES_AT_A_TIME: usize = 1 << 16;

/// Number of threads that a call with `num_threads` (0 for all cores) uses at most.
pub(crate) fn threads(num_threads: usize) -> usize {
    if num_threads == 0 {
        std::thread::available_parallelism().map_or(1, usize::from)
    } else {
        num_threads
    }
}

/// What `work` gives for each of the numbers below `count`, in order. A thread makes one `scratch` for all it does.
///
/// Threads are started for this call and end with it, so that a process may fork at any time.
///
/// # Panics
///
/// If `work` panics or the operating system refuses to start a thread.
pub(crate) fn map<S, R: Send>(
    count: usize,
    num_threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> R + Sync,
) -> Vec<R> {
    let num_threads = threads(num_threads).clamp(1, count.max(1));
    if num_threads == 1 {
        let mut scratch = scratch();
        return (0..count).map(|index| work(&mut scratch, index)).collect();
    }
    let next = AtomicUsize::new(0);
    let run = || {
        let mut scratch = scratch();
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return done;
            }
            done.push((index, work(&mut scratch, index)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..num_threads).map(|_| scope.spawn(run)).collect();
        let mut done = run();
        for other in others {
            done.extend(other.join().expect("a thread has panicked"));
        }
        done
    });
    done.sort_unstable_by_key(|&(index, _)| index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// What `work` gives for each text, in order; see [`map`].
pub(crate) fn map_texts<T: AsRef<str> + Sync, S, R: Send>(
    texts: &[T],
    num_threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &str) -> R + Sync,
) -> Vec<R> {
    let mut bounds = vec![0];
    let mut bytes = 0;
    for (index, text) in texts.iter().enumerate() {
        bytes += text.as_ref().len() + 1; // an empty text is work too
        if bytes >= BYTES_AT_A_TIME || index + 1 == texts.len() {
            bounds.push(index + 1);
            bytes = 0;
        }
    }
    let groups = map(bounds.len() - 1, num_threads, scratch, |scratch, group| {
        let texts = &texts[bounds[group]..bounds[group + 1]];
        texts.iter().map(|text| work(scratch, text.as_ref())).collect::<Vec<_>>()
    });
    groups.into_iter().flatten().collect()
}
