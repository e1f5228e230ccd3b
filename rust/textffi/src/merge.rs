//! The loop that both kinds of BPE share: of all neighbours that join, the pair of the highest priority joins first,
//! the leftmost of equals. A heap holds the candidates, so a run of n symbols takes O(n log n).

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// No neighbour.
const NONE: u32 = u32::MAX;

/// A piece of the text that is one symbol now. One that has joined its left neighbour has length 0.
pub struct Symbol {
    pub start: u32,
    pub len: u32,
    prev: u32,
    next: u32,
    /// What it stands for; of interest to the caller alone.
    pub id: u32,
}

/// Two neighbours that would join to `id`.
struct Candidate<P> {
    priority: P,
    left: u32,
    right: u32,
    /// Bytes of both when the candidate was found: it is stale where they have changed since.
    len: u32,
    id: u32,
}

impl<P: Ord> Ord for Candidate<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.cmp(&other.priority).then(other.left.cmp(&self.left))
    }
}
impl<P: Ord> PartialOrd for Candidate<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<P: Ord> PartialEq for Candidate<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<P: Ord> Eq for Candidate<P> {}

/// Symbols in the making; its buffers serve text after text.
pub struct Merger<P> {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate<P>>,
}

impl<P: Ord> Merger<P> {
    pub fn new() -> Merger<P> {
        Merger { symbols: Vec::new(), heap: BinaryHeap::new() }
    }

    pub fn clear(&mut self) {
        self.symbols.clear();
    }

    /// REQUIRES: fewer than 2^32 - 1 symbols, offsets below 2^32.
    pub fn push(&mut self, start: usize, len: usize, id: u32) {
        let index = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = index;
        }
        let prev = index.wrapping_sub(1);
        self.symbols.push(Symbol { start: start as u32, len: len as u32, prev, next: NONE, id });
    }

    /// Joins until nothing does. `join` says whether two neighbours join, how urgently, and to what.
    pub fn run(&mut self, mut join: impl FnMut(&Symbol, &Symbol) -> Option<(P, u32)>) {
        for right in 1..self.symbols.len() as u32 {
            self.propose(right - 1, right, &mut join);
        }
        while let Some(best) = self.heap.pop() {
            let right = &self.symbols[best.right as usize];
            let (right_len, next) = (right.len, right.next);
            let left = &mut self.symbols[best.left as usize];
            if left.len == 0 || right_len == 0 || left.len + right_len != best.len {
                continue;
            }
            left.len = best.len;
            left.id = best.id;
            left.next = next;
            let prev = left.prev;
            self.symbols[best.right as usize].len = 0;
            if next != NONE {
                self.symbols[next as usize].prev = best.left;
                self.propose(best.left, next, &mut join);
            }
            if prev != NONE {
                self.propose(prev, best.left, &mut join);
            }
        }
    }

    fn propose(&mut self, left: u32, right: u32, join: &mut impl FnMut(&Symbol, &Symbol) -> Option<(P, u32)>) {
        let (a, b) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        let len = a.len + b.len;
        if let Some((priority, id)) = join(a, b) {
            self.heap.push(Candidate { priority, left, right, len, id });
        }
    }

    /// The symbols that are left, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }
}
