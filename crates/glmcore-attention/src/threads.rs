//! Tasks on as many threads as asked for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// Calls `work` for each of the numbers below `count` and `receive` with what it gives, on this thread, in any order.
///
/// A thread makes one `scratch` for all it does. Threads are started for this call and end with it, so that a process
/// may fork at any time.
pub(crate) fn for_each<S, R: Send>(
    count: usize,
    num_threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> R + Sync,
    mut receive: impl FnMut(usize, R),
) {
    let num_threads = num_threads.clamp(1, count.max(1));
    if num_threads == 1 {
        let mut scratch = scratch();
        for index in 0..count {
            receive(index, work(&mut scratch, index));
        }
        return;
    }
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::sync_channel(num_threads);
    std::thread::scope(|scope| {
        for _ in 0..num_threads {
            let (sender, next, scratch, work) = (sender.clone(), &next, &scratch, &work);
            scope.spawn(move || {
                let mut scratch = scratch();
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || sender.send((index, work(&mut scratch, index))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (index, result) in results {
            receive(index, result);
        }
    });
}
