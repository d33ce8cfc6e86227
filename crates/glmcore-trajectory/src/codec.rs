//! Numbers, text and arrays as bytes, little-endian.

use bytemuck::Pod;

/// Appends values to bytes.
pub(crate) struct Writer<'a> {
    pub(crate) out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.out.push(value);
        self
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.array(text.as_bytes())
    }

    /// The number of values, then the values.
    pub(crate) fn array<T: Pod>(&mut self, values: &[T]) -> &mut Self {
        self.u64(values.len() as u64).out.extend_from_slice(bytemuck::cast_slice(values));
        self
    }

    /// Nothing as the largest number.
    pub(crate) fn option(&mut self, value: Option<u64>) -> &mut Self {
        self.u64(value.unwrap_or(u64::MAX))
    }

    pub(crate) fn pairs(&mut self, pairs: impl ExactSizeIterator<Item = (u64, u64)>) -> &mut Self {
        self.u64(pairs.len() as u64);
        for (first, second) in pairs {
            self.u64(first).u64(second);
        }
        self
    }
}

/// A number that may be missing.
pub(crate) struct Limit(pub(crate) Option<u64>);

/// Takes values from bytes; `None` where they end too early or are none.
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn u8(&mut self) -> Option<u8> {
        let (&value, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(value)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        let (bytes, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_le_bytes(*bytes))
    }

    pub(crate) fn text(&mut self) -> Option<&'a str> {
        str::from_utf8(self.bytes()?).ok()
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.len()?;
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    pub(crate) fn array<T: Pod>(&mut self) -> Option<Vec<T>> {
        let len = self.len()?.checked_mul(size_of::<T>())?;
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytemuck::pod_collect_to_vec(bytes))
    }

    /// The largest number as nothing: the other side of [`Writer::option`].
    pub(crate) fn option(&mut self) -> Option<Limit> {
        self.u64().map(|value| Limit((value != u64::MAX).then_some(value)))
    }

    pub(crate) fn pairs<C: FromIterator<(u64, u64)>>(&mut self) -> Option<C> {
        (0..self.len()?).map(|_| Some((self.u64()?, self.u64()?))).collect()
    }

    /// A number of things that follow, each at least a byte.
    pub(crate) fn len(&mut self) -> Option<usize> {
        let len = usize::try_from(self.u64()?).ok()?;
        (len <= self.rest.len()).then_some(len)
    }
}
