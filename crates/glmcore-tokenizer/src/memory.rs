//! Large tables.
#![expect(unsafe_code, reason = "a table is looked at per word and per merge: no checks there")]

use std::ptr::NonNull;

use bytemuck::Pod;
use memmap2::MmapMut;

/// A zeroed array on large pages where the system has them: tables of megabytes that are read at random would spend
/// most of their time in looking up small pages.
#[derive(Debug)]
pub(crate) struct Table<T> {
    /// Points into `memory`, which stays where it is.
    first: NonNull<T>,
    len: usize,
    /// Kept for its end.
    _memory: MmapMut,
}

// SAFETY: a table owns its memory as a boxed slice does.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Table<T> {}

const LARGE_PAGE: usize = 1 << 21;

impl<T: Pod> Table<T> {
    /// An array of `len` zeroed items, at least one.
    ///
    /// # Panics
    ///
    /// If the system has no memory left.
    pub(crate) fn zeroed(len: usize) -> Self {
        let size = len.checked_mul(size_of::<T>()).expect("a table fits the address space");
        // Room to begin where a large page can; pages that are not touched take no memory.
        let room = if size < LARGE_PAGE { 0 } else { 2 * LARGE_PAGE };
        let mut memory = MmapMut::map_anon(size + room).expect("the system gives memory");
        let before = if room == 0 { 0 } else { memory.as_ptr().align_offset(LARGE_PAGE) };
        #[cfg(target_os = "linux")]
        if room > 0 {
            // A hint: without large pages the table is slower, not wrong.
            drop(memory.advise(memmap2::Advice::HugePage));
        }
        let items: &mut [T] = bytemuck::cast_slice_mut(&mut memory[before..before + size]);
        Self { first: NonNull::from(items).cast(), len, _memory: memory }
    }

    #[inline(always)]
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `zeroed` has made a slice of as many items there, and the mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }

    #[inline(always)]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}
