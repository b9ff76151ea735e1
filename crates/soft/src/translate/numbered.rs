//! Things with consecutive numbers, the oldest of which go away.

use std::collections::VecDeque;

/// A queue whose elements keep the number they got.
#[derive(Debug)]
pub(super) struct Numbered<T> {
    /// The number of the oldest.
    first: u32,
    things: VecDeque<T>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            first: 0,
            things: VecDeque::new(),
        }
    }
}

impl<T> Numbered<T> {
    /// The number the next will get.
    pub(super) fn next(&self) -> u32 {
        self.first + self.things.len() as u32
    }

    /// Adds one and says its number.
    pub(super) fn push(&mut self, thing: T) -> u32 {
        let number = self.next();
        self.things.push_back(thing);
        number
    }

    #[inline(always)]
    pub(super) fn get(&self, number: u32) -> Option<&T> {
        self.things.get(number.wrapping_sub(self.first) as usize)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        let index = number.wrapping_sub(self.first) as usize;
        self.things.get_mut(index)
    }

    /// Takes away the oldest if its number is below `end`.
    pub(super) fn pop_below(&mut self, end: u32) -> Option<T> {
        if self.first >= end {
            return None;
        }
        let thing = self.things.pop_front()?;
        self.first += 1;
        Some(thing)
    }
}
