//! A fixed number of yes-or-no answers, one bit each.

/// Bits `0..len`, all clear at first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    words: Vec<u64>,
    len: usize,
    ones: usize,
}

impl Bits {
    pub(crate) fn new(len: usize) -> Bits {
        Bits { words: vec![0; len.div_ceil(64)], len, ones: 0 }
    }

    pub(crate) fn get(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    /// Sets a bit; tells whether it was clear. Beyond the end nothing happens.
    pub(crate) fn set(&mut self, index: usize) -> bool {
        if index >= self.len || self.get(index) {
            return false;
        }
        self.words[index / 64] |= 1 << (index % 64);
        self.ones += 1;
        true
    }

    pub(crate) fn ones(&self) -> usize {
        self.ones
    }

    pub(crate) fn all(&self) -> bool {
        self.ones == self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_bit_once_and_ignores_what_is_outside() {
        let mut bits = Bits::new(65);
        assert!(bits.set(0) && bits.set(64));
        assert!(!bits.set(64) && !bits.set(65));
        assert_eq!((bits.ones(), bits.all(), bits.get(64), bits.get(65)), (2, false, true, false));
        (0..65).for_each(|index| {
            bits.set(index);
        });
        assert!(bits.all());
        assert!(Bits::new(0).all());
    }
}
