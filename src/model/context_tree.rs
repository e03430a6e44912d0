//! The tree of memory contexts in the memory of a Postgres process that goes on running.
//!
//! # What is read
//!
//! A memory context begins with a `MemoryContextData`, 80 bytes that are the same in PostgreSQL 15 to 19. It points to
//! its parent, its first child and its two neighbors among the parent's children, to its name and, if it has one, to
//! its identifier. The variable `TopMemoryContext` points to the root.
//!
//! # Why the result can be trusted
//!
//! The process is not stopped, so it can change the tree between any two reads, and even during one. A walk that finds
//! all links in order can still return a tree that never existed, made of an old and a new part. Therefore everything
//! is read at least twice. If a context or a text was the same in two reads, it had that value all the time in between.
//! (In theory a value can change and change back. In the test that imitates a busy process it never mattered, whereas a
//! single read led to trees that never existed.) A tree is returned only if there is a moment that lies between two
//! equal reads of each of its parts. At that moment, this tree stood in the memory.
//!
//! Reads are numbered for this, piece by piece, in the order in which they happen. Each value has the number of the
//! read that first found it, and of the last that found it unchanged. The moment exists if the highest of the first
//! numbers is below the lowest of the last.
//!
//! Sizes are not part of the comparison. They change often, and each is correct at the time of its last read.
//!
//! # How it ends although the process is busy
//!
//! A process that changes its tree every few microseconds leaves no time to read everything between two changes. But it
//! changes only few contexts, and mostly the same ones, also in that it deletes some and creates others in their place.
//! Each pass therefore begins with those that have changed in the last passes. One call reads all of them twice, and is
//! repeated until both reads are equal. The moment lies between those two. All other contexts only have to be unchanged
//! before and after it, however long it takes to read them.
//!
//! A context that has been created since the last read of its place is known only if it is read before that moment. So
//! between two of these calls, the links of what has changed are followed. Afterwards comes what is likely to change
//! next: the neighbors of what has changed, because lists grow at one end and lose contexts at the other.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, TryReserveError};
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use super::memory::{Failure, Memory, Piece, read_pieces};
use ahead::Ahead;

/// The offsets of the fields of a `MemoryContextData`, and its size.
pub mod offset {
    /// The node tag, which says of which type the context is.
    pub const TAG: usize = 0;
    /// The number of bytes allocated for the context.
    pub const ALLOCATED: usize = 8;
    /// The table of functions of the context's type.
    pub const METHODS: usize = 16;
    /// The parent.
    pub const PARENT: usize = 24;
    /// The first child.
    pub const FIRST_CHILD: usize = 32;
    /// The previous child of the same parent.
    pub const PREVIOUS: usize = 40;
    /// The next child of the same parent.
    pub const NEXT: usize = 48;
    /// The name.
    pub const NAME: usize = 56;
    /// The identifier.
    pub const IDENT: usize = 64;
    /// The size of the structure.
    pub const SIZE: usize = 80;
}

/// The maximum length of a text, in bytes. A longer one is cut.
pub const MAX_TEXT: usize = 1023;

/// How many bytes of a text are read at first. Most names and identifiers are shorter.
const SHORT_TEXT: usize = 128;

/// Every page size is a multiple of this one.
const PAGE: u64 = 4096;

/// A type of memory contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextType {
    /// Its name, such as `AllocSet`.
    pub name: &'static str,
    /// Its node tag.
    pub tag: u32,
    /// The address of its table of functions.
    pub methods: u64,
}

/// Where a process of this server has its memory contexts, and how to recognize them.
#[derive(Clone, Copy, Debug)]
pub struct Layout<'a> {
    /// The address of the variable that points to the root.
    pub root: u64,
    /// The types of memory contexts.
    pub types: &'a [ContextType],
}

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum number of contexts.
    pub contexts: usize,
    /// The maximum number of passes.
    pub passes: usize,
    /// How many contexts of a list are read one by one before memory is read ahead.
    pub one_by_one: usize,
}

/// What came of the attempt to read a tree.
#[derive(Debug)]
pub enum Outcome {
    /// A tree that was in the memory at one moment, and in which pass it was found.
    Found(Tree, usize),
    /// No pass found a tree that stayed as it was. This is the number of passes.
    KeptChanging(usize),
    /// There are more contexts than the limit allows.
    TooMany,
}

/// A tree of memory contexts.
#[derive(Debug, Default)]
pub struct Tree {
    /// The contexts. Each one is followed by its first child with all below that, then the next child, and so on.
    pub contexts: Vec<Context>,
    texts: Vec<u8>,
}

/// A memory context.
#[derive(Clone, Debug)]
pub struct Context {
    /// The index of its parent. `None` for the root.
    pub parent: Option<usize>,
    /// The number of contexts from the root to this one, both included.
    pub level: usize,
    /// The name of its type.
    pub type_name: &'static str,
    /// The number of bytes allocated for it.
    pub total: u64,
    /// The number of bytes allocated for it and for all contexts below it.
    pub tree_total: u64,
    name: Option<Range<usize>>,
    ident: Option<Range<usize>>,
}

impl Tree {
    /// The name of a context.
    pub fn name(&self, context: &Context) -> Option<&[u8]> {
        context.name.clone().map(|range| &self.texts[range])
    }

    /// The identifier of a context.
    pub fn ident(&self, context: &Context) -> Option<&[u8]> {
        context.ident.clone().map(|range| &self.texts[range])
    }
}

/// Reads the tree of contexts. Calls `pause` before each read, and `may_continue` before each pass after the first,
/// with the number of passes before; if that returns false, no more is tried. `pause` may unwind.
pub fn read_tree<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    limits: Limits,
    pause: &mut dyn FnMut(),
    may_continue: &mut dyn FnMut(usize) -> bool,
) -> Result<Outcome, Failure<M::Error>> {
    let mut reader = Reader::new(memory, layout, limits, pause);
    let mut pass = 0;
    while pass < limits.passes && (pass == 0 || may_continue(pass)) {
        pass += 1;
        match reader.pass()? {
            Pass::Consistent => return Ok(Outcome::Found(reader.into_tree()?, pass)),
            Pass::Inconsistent => {}
            Pass::TooMany => return Ok(Outcome::TooMany),
        }
    }
    Ok(Outcome::KeptChanging(pass))
}

/// The bytes of a `MemoryContextData`.
type Image = [u8; offset::SIZE];

fn word(image: &Image, offset: usize) -> u64 {
    let bytes = image[offset..].first_chunk().expect("the offset is one of a field of eight bytes");
    u64::from_le_bytes(*bytes)
}

/// Whether a later image says the same of the tree. The size is not part of it, nor are two flags, which say whether
/// the context is empty and whether it may be used in a critical section. A first child points to no previous one,
/// until another is put before it.
fn are_equal(earlier: &Image, later: &Image) -> bool {
    const AFTER_TAG: usize = offset::TAG + size_of::<u32>();
    const AFTER_PREVIOUS: usize = offset::PREVIOUS + size_of::<u64>();
    let [earlier_previous, later_previous] = [earlier, later].map(|image| word(image, offset::PREVIOUS));
    [0..AFTER_TAG, offset::METHODS..offset::PREVIOUS, AFTER_PREVIOUS..offset::SIZE]
        .into_iter()
        .all(|range| earlier[range.clone()] == later[range])
        && (earlier_previous == 0 || earlier_previous == later_previous)
}

/// The numbers of the reads that found the same value, and in which passes it was another.
#[derive(Clone, Copy)]
struct Found {
    /// The first read that found it.
    first: u64,
    /// The last read that found it.
    last: u64,
    /// The last pass in which it had changed.
    changed: Option<usize>,
    /// When it was last put on a list of what is to be read.
    listed: u64,
}

impl Found {
    fn new(first: u64, last: u64, pass: usize) -> Self {
        // In the first pass this says nothing; later, it has not been there before.
        Found { first, last, changed: (pass > 1).then_some(pass), listed: 0 }
    }

    /// Takes note of another read. Returns whether it found the same value.
    fn again(&mut self, is_same: bool, read: u64, pass: usize) -> bool {
        self.last = read;
        if !is_same {
            self.first = read;
            self.changed = Some(pass);
        }
        is_same
    }

    /// Whether it has changed in this pass or one of the last, `passes` in all.
    fn has_changed(&self, passes: usize, pass: usize) -> bool {
        self.changed.is_some_and(|changed| changed + passes > pass)
    }

    /// Whether it is not on the list that is being made. Then it is from now on.
    fn is_new_on(&mut self, list: u64) -> bool {
        list != std::mem::replace(&mut self.listed, list)
    }
}

/// A place where a context is, or was.
struct Node {
    address: u64,
    /// `None` if there is no context any more.
    image: Option<Image>,
    found: Found,
    /// The last pass in which a link led to it.
    reached: usize,
    /// The last pass in which it was read again because it did not point back to where a link came from.
    doubted: usize,
}

/// A text that has been read.
struct Text {
    bytes: Range<usize>,
    found: Found,
}

/// A link that leads to a context, and what that context must point back to.
#[derive(Clone, Copy)]
struct Link {
    address: u64,
    parent: u64,
    previous: u64,
}

enum Pass {
    Consistent,
    Inconsistent,
    TooMany,
}

/// For how many passes a value that has changed is expected to change again, perhaps to and fro.
const RESTLESS: usize = 8;

/// How many values are read twice in a row. If more change, both reads are hardly ever equal.
const MAX_RESTLESS: usize = 64;

/// How often values that have changed are read in a row, until two reads are equal.
const MAX_READS_IN_A_ROW: usize = 10;

/// For how many links what has changed is followed between two of these reads.
const MAX_LINKS_IN_A_ROW: usize = 30;

/// Contexts are read in the order of their distances to one that has changed. These are the largest of each group. A
/// process that creates contexts at one end of a list and deletes them at the other soon gets to the neighbors.
const RINGS: [usize; 4] = [4, 16, 64, usize::MAX];

/// For how many passes the neighbors of a context that has changed are read first.
const RECENT: usize = 2;

/// After how many passes what is no longer needed is forgotten, and everything else is read again.
const CLEANUP: usize = 16;

/// What has been read so far.
struct Reader<'a, M> {
    memory: &'a mut M,
    layout: &'a Layout<'a>,
    max_contexts: usize,
    pause: &'a mut dyn FnMut(),
    pass: usize,
    /// The number of reads.
    reads: u64,
    /// The number of lists that have been made.
    lists: u64,
    /// The value of the variable that points to the root.
    root: Option<(u64, Found)>,
    nodes: Vec<Node>,
    /// The index of the node at an address.
    by_address: ByAddress<usize>,
    /// The nodes that were reached in this pass.
    reached: Vec<usize>,
    /// The addresses of contexts whose next sibling has changed or gone.
    lost_next: Vec<u64>,
    /// The text at an address.
    texts: ByAddress<Text>,
    text_bytes: Vec<u8>,
    buffer: Vec<u8>,
    ahead: Ahead,
}

type ByAddress<T> = HashMap<u64, T, BuildHasherDefault<AddressHasher>>;

/// A fast hash of an address. The addresses come from a process of our own cluster, so nobody chooses them to collide.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, address: u64) {
        // The map uses the low and the highest bits, and the low bits of addresses are zero.
        let product = (self.0 ^ address).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ product >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Something to be read again.
#[derive(Clone, Copy)]
enum Known {
    Node(usize),
    Text(u64),
}

impl<'a, M: Memory> Reader<'a, M> {
    fn new(memory: &'a mut M, layout: &'a Layout, limits: Limits, pause: &'a mut dyn FnMut()) -> Self {
        Reader {
            memory,
            layout,
            max_contexts: limits.contexts,
            pause,
            pass: 0,
            reads: 0,
            lists: 0,
            root: None,
            nodes: Vec::new(),
            by_address: ByAddress::default(),
            reached: Vec::new(),
            lost_next: Vec::new(),
            texts: ByAddress::default(),
            text_bytes: Vec::new(),
            buffer: Vec::new(),
            ahead: Ahead::after(limits.one_by_one),
        }
    }

    fn pass(&mut self) -> Result<Pass, Failure<M::Error>> {
        self.pass += 1;
        self.ahead.clear();
        let is_at_rest = self.pass == 1 || self.wait_for_rest()?;
        let is_linked = self.follow_links()?;
        if self.reached.len() > self.max_contexts {
            return Ok(Pass::TooMany);
        }
        if is_linked && is_at_rest && self.read_texts()? && self.confirm()? {
            return Ok(Pass::Consistent);
        }
        if self.pass.is_multiple_of(CLEANUP) {
            self.clean_up()?;
        }
        Ok(Pass::Inconsistent)
    }

    /// Reads what changes time and again until two reads in a row are equal. Between them, follows the links of what
    /// has changed, so that a context is known before another takes its place. Afterwards reads its neighbors. Returns
    /// false if no two reads were equal.
    fn wait_for_rest(&mut self) -> Result<bool, Failure<M::Error>> {
        for _ in 0..MAX_READS_IN_A_ROW {
            self.lists += 1;
            let mut restless = Vec::new();
            for (index, node) in self.nodes.iter_mut().enumerate() {
                if node.found.has_changed(RESTLESS, self.pass) && node.is_linked(self.root) {
                    node.found.listed = self.lists;
                    push(&mut restless, Known::Node(index))?;
                }
            }
            for (&address, text) in &self.texts {
                if text.found.has_changed(RESTLESS, self.pass) {
                    push(&mut restless, Known::Text(address))?;
                }
            }
            let count = restless.len();
            if count > MAX_RESTLESS {
                return Ok(false);
            }
            // Twice by one call: nothing is faster.
            restless.try_reserve(count)?;
            restless.extend_from_within(..);
            let middle = self.reads + count as u64;
            let changed = self.read_again(&restless)?;
            let is_at_rest = changed.last().is_none_or(|&last| last < count);
            let mut changed: Vec<_> = changed.into_iter().map(|at| restless[at]).collect();
            for &known in &restless[..count] {
                if let Known::Node(index) = known
                    && self.has_dangling_link(index)
                {
                    push(&mut changed, known)?;
                }
            }
            if self.follow_changes(changed)? && is_at_rest {
                self.read_neighbors(middle)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a link of a node leads to one that is not known, or was no child of this parent when it was last read.
    fn has_dangling_link(&self, index: usize) -> bool {
        self.nodes[index].links().any(|link| {
            let target = self.by_address.get(&link.address);
            target.is_none_or(|&target| !self.nodes[target].is_child_of(link.parent))
        })
    }

    /// Reads what is behind something that has changed, and if that has changed, what is behind that. Returns whether
    /// nothing behind it has changed.
    fn follow_changes(&mut self, mut changed: Vec<Known>) -> Result<bool, Failure<M::Error>> {
        let mut steps = 0;
        while !(changed.is_empty() && self.lost_next.is_empty()) && steps < MAX_LINKS_IN_A_ROW {
            changed = self.read_behind(&changed, steps > 0)?;
            steps += 1;
        }
        Ok(steps <= 1)
    }

    /// Reads the contexts to which something that has changed leads, with their texts, unless they are on the list
    /// already, and texts that are new. Returns what of it has changed, too. `with_texts` says whether to read also the
    /// texts of what has changed itself.
    fn read_behind(&mut self, changed: &[Known], with_texts: bool) -> Result<Vec<Known>, Failure<M::Error>> {
        let (mut behind, mut new_texts) = (std::mem::take(&mut self.lost_next), Vec::new());
        let mut known = Vec::new();
        for changed in changed {
            match *changed {
                Known::Node(index) => {
                    let node = &self.nodes[index];
                    for link in node.links() {
                        push(&mut behind, link.address)?;
                    }
                    if with_texts {
                        for address in node.texts().filter(|address| !self.texts.contains_key(address)) {
                            push(&mut new_texts, address)?;
                        }
                        self.list_texts(index, u64::MAX, &mut known)?;
                    }
                }
                Known::Text(address) => push(&mut new_texts, address)?,
            }
        }
        let mut new_nodes = Vec::new();
        for address in behind {
            let Some(&index) = self.by_address.get(&address) else {
                push(&mut new_nodes, address)?;
                continue;
            };
            if self.nodes[index].found.is_new_on(self.lists) {
                push(&mut known, Known::Node(index))?;
                self.list_texts(index, u64::MAX, &mut known)?;
            }
        }
        let mut changed = Vec::new();
        for at in self.read_again(&known)? {
            push(&mut changed, known[at])?;
            // A context that looks as before, but has another text, is another context.
            if let Known::Text(_) = known[at]
                && let Some(&node) = known[..at].iter().rev().find(|known| matches!(known, Known::Node(_)))
            {
                push(&mut changed, node)?;
            }
        }
        let first = self.nodes.len();
        self.read_nodes(&new_nodes)?;
        for index in first..self.nodes.len() {
            push(&mut changed, Known::Node(index))?;
        }
        self.read_new_texts(&new_texts)?;
        Ok(changed)
    }

    /// Reads the nearest neighbors of what has changed, as they were when the links were followed, unless they have
    /// been found by a later read than this one.
    fn read_neighbors(&mut self, read: u64) -> Result<(), Failure<M::Error>> {
        let distances = self.distances_to_changes()?;
        let reached = std::mem::take(&mut self.reached);
        let near = reached.iter().zip(distances).filter(|&(_, distance)| distance <= RINGS[0]).map(|(&index, _)| index);
        let known = self.list(near, read)?;
        self.reached = reached;
        let changed = self.read_again(&known)?.into_iter().map(|at| known[at]).collect();
        self.follow_changes(changed)?;
        Ok(())
    }

    /// For each node that was reached, how far it is from one that has changed lately.
    fn distances_to_changes(&self) -> Result<Vec<usize>, TryReserveError> {
        let mut distances = Vec::new();
        distances.try_reserve(self.reached.len())?;
        let mut distance = usize::MAX;
        for &index in &self.reached {
            distance =
                if self.nodes[index].found.has_changed(RECENT, self.pass) { 0 } else { distance.saturating_add(1) };
            distances.push(distance);
        }
        for known in distances.iter_mut().rev() {
            distance = distance.saturating_add(1).min(*known);
            *known = distance;
        }
        Ok(distances)
    }

    /// A list of nodes, each followed by its texts, without those that have been found by a later read than this one.
    fn list(&mut self, nodes: impl Iterator<Item = usize>, read: u64) -> Result<Vec<Known>, TryReserveError> {
        self.lists += 1;
        let mut known = Vec::new();
        for index in nodes {
            if self.nodes[index].found.last <= read {
                push(&mut known, Known::Node(index))?;
            }
            self.list_texts(index, read, &mut known)?;
        }
        Ok(known)
    }

    /// Adds the texts of a node to the list, without those that have been found by a later read than this one.
    fn list_texts(&mut self, index: usize, read: u64, known: &mut Vec<Known>) -> Result<(), TryReserveError> {
        for address in self.nodes[index].texts() {
            // Several contexts can share a text.
            if let Some(text) = self.texts.get_mut(&address)
                && text.found.last <= read
                && text.found.is_new_on(self.lists)
            {
                push(known, Known::Text(address))?;
            }
        }
        Ok(())
    }

    /// Goes from the root along all links, and reads the contexts that are not known, or that do not point back.
    /// Returns whether all links agree with each other.
    fn follow_links(&mut self) -> Result<bool, Failure<M::Error>> {
        self.reached.clear();
        if self.root.is_none() {
            self.read_root()?;
        }
        let Some((root, _)) = self.root else { return Ok(false) };
        let mut links = vec![Link { address: root, parent: 0, previous: 0 }];
        let (mut later, mut unread, mut doubted) = (Vec::new(), Vec::new(), Vec::new());
        let mut agree = true;
        loop {
            while let Some(link) = links.pop() {
                match self.by_address.get(&link.address) {
                    Some(&index) if self.nodes[index].points_back(link) => {
                        agree &= self.reach(index, &mut links)?;
                    }
                    Some(&index) if self.nodes[index].doubted != self.pass => {
                        self.nodes[index].doubted = self.pass;
                        push(&mut doubted, Known::Node(index))?;
                        // It may be the other end that has changed.
                        if let Some(&source) = self.by_address.get(&link.source()) {
                            push(&mut doubted, Known::Node(source))?;
                        }
                        push(&mut later, link)?;
                    }
                    // A new first child may have been put before this one meanwhile.
                    Some(&index) if link.previous == 0 && self.nodes[index].is_child_of(link.parent) => {
                        agree &= self.reach(index, &mut links)?;
                    }
                    Some(_) => agree = false,
                    None => {
                        push(&mut unread, link.address)?;
                        push(&mut later, link)?;
                    }
                }
                if self.reached.len() > self.max_contexts {
                    return Ok(false);
                }
            }
            if later.is_empty() {
                return Ok(agree);
            }
            self.read_ahead(&unread)?;
            self.read_nodes(&unread)?;
            for at in self.read_again(&doubted)? {
                // Its links have been followed as they were before.
                agree &= !matches!(doubted[at], Known::Node(index) if self.nodes[index].reached == self.pass);
            }
            unread.clear();
            doubted.clear();
            std::mem::swap(&mut links, &mut later);
        }
    }

    /// Adds the links of a node to which a link leads. Returns false if another link led to it in this pass.
    fn reach(&mut self, index: usize, links: &mut Vec<Link>) -> Result<bool, TryReserveError> {
        let node = &mut self.nodes[index];
        if node.reached == self.pass {
            return Ok(false);
        }
        node.reached = self.pass;
        push(&mut self.reached, index)?;
        for link in node.links() {
            push(links, link)?;
        }
        Ok(true)
    }

    fn read_root(&mut self) -> Result<bool, Failure<M::Error>> {
        let piece = Piece { address: self.layout.root, length: size_of::<u64>() };
        let Reader { memory, pause, pass, reads, root, buffer, .. } = self;
        let mut is_same = false;
        read_pieces(*memory, &[piece], buffer, reads, pause, |_, read, bytes| {
            let value = bytes.and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));
            match (&mut *root, value) {
                (Some((known, found)), Some(value)) => {
                    is_same = found.again(*known == value, read, *pass);
                    *known = value;
                }
                _ => *root = value.map(|value| (value, Found::new(read, read, *pass))),
            }
            Ok(())
        })?;
        Ok(is_same)
    }

    /// Reads what is near the nodes at these addresses, if they belong to a long list.
    fn read_ahead(&mut self, unread: &[u64]) -> Result<(), Failure<M::Error>> {
        let Some(piece) = self.ahead.next_piece(unread) else { return Ok(()) };
        let Reader { memory, pause, reads, ahead, .. } = self;
        let mut is_read = false;
        read_pieces(*memory, &[piece], ahead.place(piece), reads, pause, |_, _, bytes| {
            is_read = bytes.is_some();
            Ok(())
        })?;
        if is_read {
            ahead.set_read(*reads);
        } else {
            ahead.clear();
        }
        Ok(())
    }

    /// Reads the nodes at addresses that are not known.
    fn read_nodes(&mut self, unread: &[u64]) -> Result<(), Failure<M::Error>> {
        let mut pieces = Vec::new();
        for &address in unread {
            match self.ahead.take(address) {
                Some((bytes, read)) => {
                    let node = Node::new(address, context(self.layout, address, bytes), read, self.pass);
                    add_node(&mut self.nodes, &mut self.by_address, node)?;
                }
                None => push(&mut pieces, Piece { address, length: offset::SIZE })?,
            }
        }
        let Reader { memory, layout, pause, pass, reads, nodes, by_address, buffer, .. } = self;
        read_pieces(*memory, &pieces, buffer, reads, pause, |nth, read, bytes| {
            let address = pieces[nth].address;
            let image = bytes.and_then(|bytes| context(layout, address, bytes));
            add_node(nodes, by_address, Node::new(address, image, read, *pass))
        })
    }

    /// Reads the names and identifiers of the nodes that were reached, unless they have been read since the node was
    /// found. Returns false if one of them cannot be read.
    fn read_texts(&mut self) -> Result<bool, Failure<M::Error>> {
        let mut unread: Vec<u64> = Vec::new();
        for &index in &self.reached {
            let node = &self.nodes[index];
            for address in node.texts() {
                // What is there may be another context's text.
                if self.texts.get(&address).is_none_or(|text| text.found.last < node.found.first) {
                    push(&mut unread, address)?;
                }
            }
        }
        // Several contexts can share a text.
        unread.sort_unstable();
        unread.dedup();
        self.read_new_texts(&unread)?;
        // If a text cannot be read, the contexts to which it belongs have changed.
        let mut changed = Vec::new();
        for &index in &self.reached {
            if self.nodes[index].texts().any(|address| !self.texts.contains_key(&address)) {
                push(&mut changed, Known::Node(index))?;
            }
        }
        self.read_again(&changed)?;
        Ok(changed.is_empty())
    }

    /// Reads texts whose length is not known. Forgets those that cannot be read.
    fn read_new_texts(&mut self, addresses: &[u64]) -> Result<(), Failure<M::Error>> {
        let long = self.read_texts_at(addresses, SHORT_TEXT)?;
        for address in self.read_texts_at(&long, MAX_TEXT + 1)? {
            self.texts.remove(&address);
        }
        Ok(())
    }

    /// Reads `length` bytes of each text. Returns those that do not end within that length, unless it is the maximum,
    /// and those that cannot be read.
    fn read_texts_at(&mut self, addresses: &[u64], length: usize) -> Result<Vec<u64>, Failure<M::Error>> {
        let (mut pieces, mut owners) = (Vec::new(), Vec::new());
        for (owner, &address) in addresses.iter().enumerate() {
            // A piece that crosses into a page that does not exist could not be read at all.
            let in_first_page = length.min((PAGE - address % PAGE) as usize);
            let second = Piece { address: address.wrapping_add(in_first_page as u64), length: length - in_first_page };
            for piece in [Piece { address, length: in_first_page }, second] {
                if piece.length > 0 {
                    push(&mut pieces, piece)?;
                    push(&mut owners, owner)?;
                }
            }
        }
        let Reader { memory, pause, pass, reads, texts, text_bytes, buffer, .. } = self;
        let mut unfinished = Vec::new();
        // The text that is being read: where it begins, which read was its first, and whether its end has been found,
        // or a hole before it.
        let (mut start, mut first_read, mut has_ended, mut has_hole) = (text_bytes.len(), None, false, false);
        read_pieces(*memory, &pieces, buffer, reads, pause, |nth, read, bytes| {
            let (owner, is_last) = (owners[nth], owners.get(nth + 1) != Some(&owners[nth]));
            let first = *first_read.get_or_insert(read);
            match bytes {
                _ if has_ended || has_hole => {}
                Some(bytes) => {
                    let end = memchr::memchr(0, bytes);
                    let text = &bytes[..end.unwrap_or(bytes.len())];
                    text_bytes.try_reserve(text.len())?;
                    text_bytes.extend_from_slice(text);
                    has_ended = end.is_some();
                }
                None => has_hole = true,
            }
            if is_last {
                if has_ended || text_bytes.len() - start > MAX_TEXT {
                    text_bytes.truncate(start + MAX_TEXT);
                    let bytes = start..text_bytes.len();
                    texts.try_reserve(1)?;
                    match texts.entry(addresses[owner]) {
                        Entry::Occupied(entry)
                            if text_bytes[entry.get().bytes.clone()] == text_bytes[bytes.clone()] =>
                        {
                            entry.into_mut().found.again(true, first, *pass);
                            text_bytes.truncate(start);
                        }
                        entry => {
                            // If its two pieces come from two reads, no moment lies between these, until it is read
                            // again.
                            let found = Found::new(read, first, *pass);
                            entry.insert_entry(Text { bytes, found });
                        }
                    }
                } else {
                    text_bytes.truncate(start);
                    push(&mut unfinished, addresses[owner])?;
                }
                (start, first_read, has_ended, has_hole) = (text_bytes.len(), None, false, false);
            }
            Ok(())
        })?;
        Ok(unfinished)
    }

    /// Looks for the moment that lies between two reads of each part of the tree. What has not been read since the last
    /// part was found is read again. Returns whether all of it is unchanged.
    fn confirm(&mut self) -> Result<bool, Failure<M::Error>> {
        let mut newest = self.root.map_or(0, |(_, found)| found.first);
        for &index in &self.reached {
            newest = newest.max(self.nodes[index].found.first);
            for address in self.nodes[index].texts() {
                newest = newest.max(self.texts[&address].found.first);
            }
        }
        if self.root.is_none_or(|(_, found)| found.last <= newest) && !self.read_root()? {
            return Ok(false);
        }
        // First what is likely to change, and if it has changed, nothing else.
        let distances = self.distances_to_changes()?;
        let reached = std::mem::take(&mut self.reached);
        let mut nearest = 0;
        for farthest in RINGS {
            let is_in_ring = |&(_, distance): &(_, &usize)| (nearest..=farthest).contains(distance);
            let nodes = reached.iter().zip(&distances).filter(is_in_ring).map(|(&index, _)| index);
            let known = self.list(nodes, newest)?;
            if !self.read_again(&known)?.is_empty() {
                self.reached = reached;
                return Ok(false);
            }
            nearest = farthest.saturating_add(1);
        }
        self.reached = reached;
        Ok(true)
    }

    /// The pieces of memory of something that is known.
    fn pieces(&self, known: &[Known]) -> Result<Vec<Piece>, TryReserveError> {
        let mut pieces = Vec::new();
        pieces.try_reserve(known.len())?;
        pieces.extend(known.iter().map(|known| match *known {
            Known::Node(index) => Piece { address: self.nodes[index].address, length: offset::SIZE },
            // The zero byte at the end is part of it.
            Known::Text(address) => {
                let length = self.texts.get(&address).map_or(0, |text| text.bytes.len());
                Piece { address, length: length + 1 }
            }
        }));
        Ok(pieces)
    }

    /// Reads something once more. Returns the indexes of what has changed.
    fn read_again(&mut self, known: &[Known]) -> Result<Vec<usize>, Failure<M::Error>> {
        let pieces = self.pieces(known)?;
        let Reader { memory, layout, pause, pass, reads, nodes, lost_next, texts, text_bytes, buffer, .. } = self;
        let mut changed = Vec::new();
        read_pieces(*memory, &pieces, buffer, reads, pause, |nth, read, bytes| {
            let is_same = match known[nth] {
                Known::Node(index) => {
                    let node = &mut nodes[index];
                    let image = bytes.and_then(|bytes| context(layout, node.address, bytes));
                    let is_same = match (&node.image, &image) {
                        (Some(known), Some(image)) => are_equal(known, image),
                        (None, None) => true,
                        _ => false,
                    };
                    if !is_same
                        && let Some(image) = &node.image
                        && word(image, offset::PREVIOUS) != 0
                    {
                        push(lost_next, word(image, offset::PREVIOUS))?;
                    }
                    node.image = image;
                    node.found.again(is_same, read, *pass)
                }
                Known::Text(address) => {
                    // It may have been forgotten because it has changed.
                    let Some(text) = texts.get_mut(&address) else { return Ok(()) };
                    let known = &text_bytes[text.bytes.clone()];
                    let is_same = bytes.is_some_and(|bytes| {
                        let (end, read) = bytes.split_last().expect("the piece has at least one byte");
                        read == known && (*end == 0 || known.len() == MAX_TEXT)
                    });
                    if text.found.again(is_same, read, *pass) {
                        true
                    } else {
                        // Its length may be another now.
                        texts.remove(&address);
                        false
                    }
                }
            };
            if !is_same {
                push(&mut changed, nth)?;
            }
            Ok(())
        })?;
        Ok(changed)
    }

    /// Forgets what was not reached in this pass. Reads the rest again, in case that something has changed unnoticed.
    fn clean_up(&mut self) -> Result<(), Failure<M::Error>> {
        let (pass, by_address) = (self.pass, &mut self.by_address);
        self.nodes.retain(|node| node.reached == pass);
        // They have indexes of what was there before.
        self.reached.clear();
        by_address.clear();
        by_address.try_reserve(self.nodes.len())?;
        by_address.extend(self.nodes.iter().enumerate().map(|(index, node)| (node.address, index)));

        let mut bytes = Vec::new();
        bytes.try_reserve(self.texts.values().map(|text| text.bytes.len()).sum())?;
        let mut texts = ByAddress::default();
        texts.try_reserve(self.texts.len())?;
        for node in &self.nodes {
            for address in node.texts() {
                if let Some(mut text) = self.texts.remove(&address) {
                    let start = bytes.len();
                    bytes.extend_from_slice(&self.text_bytes[text.bytes]);
                    text.bytes = start..bytes.len();
                    texts.insert(address, text);
                }
            }
        }
        (self.texts, self.text_bytes) = (texts, bytes);

        let mut all = Vec::new();
        all.try_reserve(self.nodes.len())?;
        all.extend((0..self.nodes.len()).map(Known::Node));
        self.read_again(&all)?;
        self.read_root()?;
        Ok(())
    }

    /// The tree, after a pass that was consistent.
    fn into_tree(self) -> Result<Tree, Failure<M::Error>> {
        let mut contexts: Vec<Context> = Vec::new();
        contexts.try_reserve(self.reached.len())?;
        let mut pending: Vec<_> = self.root.iter().map(|(root, _)| (*root, None, 1)).collect();
        while let Some((address, parent, level)) = pending.pop() {
            let image = self.nodes[self.by_address[&address]].image.as_ref().expect("a context that was reached");
            let index = contexts.len();
            let field = |offset| word(image, offset);
            let total = field(offset::ALLOCATED);
            contexts.push(Context {
                parent,
                level,
                type_name: type_of(self.layout, image).map_or("", |context_type| context_type.name),
                total,
                tree_total: total,
                name: self.texts.get(&field(offset::NAME)).map(|text| text.bytes.clone()),
                ident: self.texts.get(&field(offset::IDENT)).map(|text| text.bytes.clone()),
            });
            // The child last, because the last is the first to be taken.
            for (address, parent, level) in
                [(field(offset::NEXT), parent, level), (field(offset::FIRST_CHILD), Some(index), level + 1)]
            {
                if address != 0 {
                    push(&mut pending, (address, parent, level))?;
                }
            }
        }
        for index in (0..contexts.len()).rev() {
            let total = contexts[index].tree_total;
            if let Some(parent) = contexts[index].parent {
                contexts[parent].tree_total = contexts[parent].tree_total.saturating_add(total);
            }
        }
        Ok(Tree { contexts, texts: self.text_bytes })
    }
}

impl Link {
    /// The context whose link it is.
    fn source(self) -> u64 {
        if self.previous != 0 { self.previous } else { self.parent }
    }
}

/// Adds a node, unless there is one at this address.
fn add_node(nodes: &mut Vec<Node>, by_address: &mut ByAddress<usize>, node: Node) -> Result<(), TryReserveError> {
    by_address.try_reserve(1)?;
    if let Entry::Vacant(entry) = by_address.entry(node.address) {
        entry.insert(nodes.len());
        push(nodes, node)?;
    }
    Ok(())
}

impl Node {
    fn new(address: u64, image: Option<Image>, read: u64, pass: usize) -> Self {
        Node { address, image, found: Found::new(read, read, pass), reached: 0, doubted: 0 }
    }

    /// Whether there is a context that is part of a tree.
    fn is_linked(&self, root: Option<(u64, Found)>) -> bool {
        self.image.as_ref().is_some_and(|image| word(image, offset::PARENT) != 0)
            || root.is_some_and(|(root, _)| root == self.address)
    }

    /// Whether there is a context with this parent. The root has neither a parent nor siblings.
    fn is_child_of(&self, parent: u64) -> bool {
        self.image.as_ref().is_some_and(|image| {
            let field = |offset| word(image, offset);
            let has_siblings = field(offset::PREVIOUS) != 0 || field(offset::NEXT) != 0;
            field(offset::PARENT) == parent && (parent != 0 || !has_siblings)
        })
    }

    /// Whether there is a context that points back to where `link` comes from.
    fn points_back(&self, link: Link) -> bool {
        self.is_child_of(link.parent)
            && self.image.as_ref().is_some_and(|image| word(image, offset::PREVIOUS) == link.previous)
    }

    /// Its links: to the next child of the same parent, and to its own first child.
    fn links(&self) -> impl Iterator<Item = Link> + use<> {
        let field = |offset| self.image.as_ref().map_or(0, |image| word(image, offset));
        let next = Link { address: field(offset::NEXT), parent: field(offset::PARENT), previous: self.address };
        let child = Link { address: field(offset::FIRST_CHILD), parent: self.address, previous: 0 };
        [next, child].into_iter().filter(|link| link.address != 0)
    }

    /// The addresses of its texts.
    fn texts(&self) -> impl Iterator<Item = u64> + use<> {
        let fields = self.image.as_ref().map(|image| [offset::NAME, offset::IDENT].map(|offset| word(image, offset)));
        fields.into_iter().flatten().filter(|&address| address != 0)
    }
}

/// The image of the context at an address, if there is one.
fn context(layout: &Layout, address: u64, bytes: &[u8]) -> Option<Image> {
    let image = *bytes.first_chunk()?;
    (address.is_multiple_of(align_of::<u64>() as u64) && type_of(layout, &image).is_some()).then_some(image)
}

/// The type of a context.
fn type_of<'a>(layout: &Layout<'a>, image: &Image) -> Option<&'a ContextType> {
    let tag = u32::from_le_bytes(*image[offset::TAG..].first_chunk()?);
    layout.types.iter().find(|known| known.tag == tag && known.methods == word(image, offset::METHODS))
}

fn push<T>(vec: &mut Vec<T>, value: T) -> Result<(), TryReserveError> {
    vec.try_reserve(1)?;
    vec.push(value);
    Ok(())
}

mod ahead;
#[cfg(any(test, feature = "oracle"))]
pub mod arena;
#[cfg(test)]
mod busy;
#[cfg(any(test, feature = "oracle"))]
pub mod naive;
#[cfg(test)]
mod tests;
