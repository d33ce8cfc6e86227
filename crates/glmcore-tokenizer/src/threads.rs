//! Threads for one call: exactly as many as asked for, and none left behind that a fork would lose.

/// Runs `work` on `num_threads` threads (0 for all cores), at most `most`; gives what each returned. The calling thread
/// is one of them.
///
/// # Panics
///
/// If `work` panics or the operating system refuses to start a thread.
pub(crate) fn on_threads<R: Send>(
    num_threads: usize,
    most: usize,
    work: impl Fn() -> R + Sync,
) -> Vec<R> {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let num_threads = if num_threads == 0 { cores() } else { num_threads }.clamp(1, most.max(1));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..num_threads).map(|_| scope.spawn(&work)).collect();
        let mut results = vec![work()];
        results
            .extend(others.into_iter().map(|thread| thread.join().expect("a thread has panicked")));
        results
    })
}
