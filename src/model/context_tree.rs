//! The tree of memory contexts in the memory of a Postgres process that goes on running.
//!
//! # What is read
//!
//! A memory context begins with a `MemoryContextData`, 80 bytes that are the same in PostgreSQL 15 to 19. It points to
//! its parent, its first child and its two neighbors among the parent's children, to its name and, if it has one, to its
//! identifier. The variable `TopMemoryContext` points to the root.
//!
//! # Why the result can be trusted
//!
//! The process is not stopped, so it can change the tree between any two reads, and even during one. A walk that finds
//! all links in order can still return a tree that never existed, made of an old and a new part. Therefore each pass
//! reads everything twice: first the contexts and their texts, as the links lead to them, and then, after the last of
//! these reads, the same bytes again. What is equal in both reads had that value in between. So if everything is equal,
//! this tree stood in the memory at the moment between the first reads and the second. (In theory a value can change and
//! change back. In the test that imitates a busy process it never mattered, whereas a single read led to trees that
//! never existed.)
//!
//! Sizes are not part of the comparison. They change often, and each is correct at the time of the second read.
//!
//! If something differs, the next pass keeps what was equal, and reads only what the new links lead to before it reads
//! everything again. So passes become short, and one of them fits in between two changes, even if the process is busy.

use std::collections::{HashMap, TryReserveError};
use std::ops::Range;

use super::memory::{Failure, Memory, Piece, read_pieces};

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

/// Reads the tree of contexts. Calls `pause` before each read, and `may_continue` before each pass after the first; if
/// that returns false, no more is tried. `pause` may unwind.
pub fn read_tree<M: Memory>(
    memory: &mut M,
    layout: &Layout,
    limits: Limits,
    pause: &mut dyn FnMut(),
    may_continue: &mut dyn FnMut() -> bool,
) -> Result<Outcome, Failure<M::Error>> {
    let mut reader = Reader::new(memory, layout, limits.contexts, pause);
    let mut pass = 0;
    while pass < limits.passes && (pass == 0 || may_continue()) {
        pass += 1;
        match reader.pass()? {
            Pass::Consistent => return Ok(Outcome::Found(reader.into_tree()?, pass)),
            Pass::Inconsistent => reader.keep_reached()?,
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

/// Whether two images differ at most in the size and in the two flags that say whether the context is empty, and
/// whether it may be used in a critical section.
fn are_equal(a: &Image, b: &Image) -> bool {
    const AFTER_TAG: usize = offset::TAG + size_of::<u32>();
    a[..AFTER_TAG] == b[..AFTER_TAG] && a[offset::METHODS..] == b[offset::METHODS..]
}

/// A context that has been read.
struct Node {
    address: u64,
    image: Image,
    /// The last pass in which a link led to it.
    reached: usize,
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

/// What has been read so far.
struct Reader<'a, M> {
    memory: &'a mut M,
    layout: &'a Layout<'a>,
    max_contexts: usize,
    pause: &'a mut dyn FnMut(),
    pass: usize,
    /// The value of the variable that points to the root.
    root: Option<u64>,
    nodes: Vec<Node>,
    /// The index of the node at an address.
    by_address: HashMap<u64, usize>,
    /// The nodes that were reached in this pass.
    reached: Vec<usize>,
    /// The text at an address.
    texts: HashMap<u64, Range<usize>>,
    text_bytes: Vec<u8>,
    pieces: Vec<Piece>,
    buffer: Vec<u8>,
}

impl<'a, M: Memory> Reader<'a, M> {
    fn new(memory: &'a mut M, layout: &'a Layout, max_contexts: usize, pause: &'a mut dyn FnMut()) -> Self {
        Reader {
            memory,
            layout,
            max_contexts,
            pause,
            pass: 0,
            root: None,
            nodes: Vec::new(),
            by_address: HashMap::new(),
            reached: Vec::new(),
            texts: HashMap::new(),
            text_bytes: Vec::new(),
            pieces: Vec::new(),
            buffer: Vec::new(),
        }
    }

    fn pass(&mut self) -> Result<Pass, Failure<M::Error>> {
        self.pass += 1;
        let is_linked = self.follow_links()?;
        if self.reached.len() > self.max_contexts {
            return Ok(Pass::TooMany);
        }
        let is_complete = is_linked && self.read_texts()?;
        let is_unchanged = self.read_again()?;
        Ok(if is_complete && is_unchanged { Pass::Consistent } else { Pass::Inconsistent })
    }

    /// Goes from the root along all links, and reads the contexts that have not been read before. Returns whether all
    /// links agree with each other.
    fn follow_links(&mut self) -> Result<bool, Failure<M::Error>> {
        self.reached.clear();
        if self.root.is_none() {
            self.root = self.read_root()?;
        }
        let Some(root) = self.root else { return Ok(false) };
        let mut links = vec![Link { address: root, parent: 0, previous: 0 }];
        let mut unread = Vec::new();
        let mut agree = true;
        loop {
            while let Some(link) = links.pop() {
                match self.by_address.get(&link.address) {
                    Some(&index) => agree &= self.reach(index, link, &mut links)?,
                    None => push(&mut unread, link)?,
                }
                if self.reached.len() > self.max_contexts {
                    return Ok(false);
                }
            }
            if unread.is_empty() {
                return Ok(agree);
            }
            agree &= self.read_nodes(&unread, &mut links)?;
            unread.clear();
        }
    }

    /// Adds the links of a node to which `link` leads. Returns false if the node does not point back, or if another link
    /// led to it in this pass.
    fn reach(&mut self, index: usize, link: Link, links: &mut Vec<Link>) -> Result<bool, TryReserveError> {
        let node = &mut self.nodes[index];
        if node.reached == self.pass {
            return Ok(false);
        }
        node.reached = self.pass;
        push(&mut self.reached, index)?;
        let field = |offset| word(&node.image, offset);
        let points_back = field(offset::PARENT) == link.parent && field(offset::PREVIOUS) == link.previous;
        let is_second_root = link.parent == 0 && field(offset::NEXT) != 0;
        if !points_back || is_second_root {
            return Ok(false);
        }
        let next = Link { address: field(offset::NEXT), parent: link.parent, previous: link.address };
        let child = Link { address: field(offset::FIRST_CHILD), parent: link.address, previous: 0 };
        for link in [next, child] {
            if link.address != 0 {
                push(links, link)?;
            }
        }
        Ok(true)
    }

    fn read_root(&mut self) -> Result<Option<u64>, Failure<M::Error>> {
        let piece = Piece { address: self.layout.root, length: size_of::<u64>() };
        let mut root = None;
        read_pieces(self.memory, &[piece], &mut self.buffer, &mut self.pause, |_, bytes| {
            root = bytes.and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));
            Ok(())
        })?;
        Ok(root)
    }

    /// Reads the nodes to which some links lead, and appends those links to `links`. Returns false if one of them leads to
    /// something that is no context.
    fn read_nodes(&mut self, unread: &[Link], links: &mut Vec<Link>) -> Result<bool, Failure<M::Error>> {
        self.pieces.clear();
        self.pieces.try_reserve(unread.len())?;
        self.pieces.extend(unread.iter().map(|link| Piece { address: link.address, length: offset::SIZE }));
        let Reader { memory, layout, pause, nodes, by_address, pieces, buffer, .. } = self;
        let mut all_are_contexts = true;
        read_pieces(*memory, pieces, buffer, pause, |nth, bytes| {
            let link = unread[nth];
            match bytes.and_then(|bytes| context(layout, link.address, bytes)) {
                Some(image) => {
                    if !by_address.contains_key(&link.address) {
                        by_address.try_reserve(1)?;
                        by_address.insert(link.address, nodes.len());
                        push(nodes, Node { address: link.address, image, reached: 0 })?;
                    }
                    push(links, link)?;
                }
                None => all_are_contexts = false,
            }
            Ok(())
        })?;
        Ok(all_are_contexts)
    }

    /// Reads the names and identifiers of the nodes that were reached, unless they have been read before. Returns false
    /// if one of them cannot be read.
    fn read_texts(&mut self) -> Result<bool, Failure<M::Error>> {
        let mut unread: Vec<u64> = Vec::new();
        for &index in &self.reached {
            let image = &self.nodes[index].image;
            for address in [word(image, offset::NAME), word(image, offset::IDENT)] {
                if address != 0 && !self.texts.contains_key(&address) {
                    self.texts.try_reserve(1)?;
                    // Its place is taken, so that it is read once.
                    self.texts.insert(address, 0..0);
                    push(&mut unread, address)?;
                }
            }
        }
        let long = self.read_texts_at(&unread, SHORT_TEXT)?;
        let unreadable = self.read_texts_at(&long, MAX_TEXT + 1)?;
        for address in &unreadable {
            self.texts.remove(address);
        }
        Ok(unreadable.is_empty())
    }

    /// Reads `length` bytes of each text. Returns those that do not end within that length, unless it is the maximum, and
    /// those that cannot be read.
    fn read_texts_at(&mut self, addresses: &[u64], length: usize) -> Result<Vec<u64>, Failure<M::Error>> {
        let mut owners = Vec::new();
        self.pieces.clear();
        for (owner, &address) in addresses.iter().enumerate() {
            // A piece that crosses into a page that does not exist could not be read at all.
            let in_first_page = length.min((PAGE - address % PAGE) as usize);
            let second = Piece { address: address.wrapping_add(in_first_page as u64), length: length - in_first_page };
            for piece in [Piece { address, length: in_first_page }, second] {
                if piece.length > 0 {
                    push(&mut self.pieces, piece)?;
                    push(&mut owners, owner)?;
                }
            }
        }
        let Reader { memory, pause, texts, text_bytes, pieces, buffer, .. } = self;
        let mut unfinished = Vec::new();
        // The text that is being read: where it begins, and whether its end has been found, or a hole before it.
        let (mut start, mut has_ended, mut has_hole) = (text_bytes.len(), false, false);
        read_pieces(*memory, pieces, buffer, pause, |nth, bytes| {
            let (owner, is_last) = (owners[nth], owners.get(nth + 1) != Some(&owners[nth]));
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
                    texts.insert(addresses[owner], start..text_bytes.len());
                } else {
                    text_bytes.truncate(start);
                    push(&mut unfinished, addresses[owner])?;
                }
                (start, has_ended, has_hole) = (text_bytes.len(), false, false);
            }
            Ok(())
        })?;
        Ok(unfinished)
    }

    /// Reads everything that was reached once more. Returns whether it is unchanged. What has changed is replaced or
    /// forgotten.
    fn read_again(&mut self) -> Result<bool, Failure<M::Error>> {
        let root = self.read_root()?;
        let mut is_unchanged = root == self.root;
        self.root = root;

        self.pieces.clear();
        self.pieces.try_reserve(self.reached.len())?;
        let nodes = &self.nodes;
        self.pieces.extend(
            self.reached.iter().map(|&index| Piece { address: nodes[index].address, length: offset::SIZE }),
        );
        let Reader { memory, layout, pause, nodes, by_address, reached, pieces, buffer, .. } = self;
        read_pieces(*memory, pieces, buffer, &mut *pause, |nth, bytes| {
            let node = &mut nodes[reached[nth]];
            match bytes.and_then(|bytes| context(layout, node.address, bytes)) {
                Some(image) => {
                    is_unchanged &= are_equal(&node.image, &image);
                    node.image = image;
                }
                None => {
                    is_unchanged = false;
                    by_address.remove(&node.address);
                }
            }
            Ok(())
        })?;

        let mut addresses = Vec::new();
        addresses.try_reserve(self.texts.len())?;
        addresses.extend(self.texts.keys().copied());
        self.pieces.clear();
        self.pieces.try_reserve(addresses.len())?;
        // The zero byte at the end is part of it.
        self.pieces.extend(
            addresses.iter().map(|address| Piece { address: *address, length: self.texts[address].len() + 1 }),
        );
        let Reader { memory, pause, texts, text_bytes, pieces, buffer, .. } = self;
        read_pieces(*memory, pieces, buffer, pause, |nth, bytes| {
            let text = &text_bytes[texts[&addresses[nth]].clone()];
            let is_same = bytes.is_some_and(|bytes| {
                let (end, read) = bytes.split_last().expect("the piece has at least one byte");
                read == text && (*end == 0 || text.len() == MAX_TEXT)
            });
            if !is_same {
                is_unchanged = false;
                texts.remove(&addresses[nth]);
            }
            Ok(())
        })?;
        Ok(is_unchanged)
    }

    /// Forgets all contexts that were not reached in this pass, and all texts that are not theirs.
    fn keep_reached(&mut self) -> Result<(), TryReserveError> {
        let (pass, by_address) = (self.pass, &mut self.by_address);
        self.nodes.retain(|node| node.reached == pass && by_address.contains_key(&node.address));
        by_address.clear();
        by_address.try_reserve(self.nodes.len())?;
        by_address.extend(self.nodes.iter().enumerate().map(|(index, node)| (node.address, index)));

        let mut bytes = Vec::new();
        bytes.try_reserve(self.texts.values().map(Range::len).sum())?;
        let mut texts = HashMap::new();
        texts.try_reserve(self.texts.len())?;
        for node in &self.nodes {
            for address in [word(&node.image, offset::NAME), word(&node.image, offset::IDENT)] {
                if let Some(text) = self.texts.remove(&address) {
                    let start = bytes.len();
                    bytes.extend_from_slice(&self.text_bytes[text]);
                    texts.insert(address, start..bytes.len());
                }
            }
        }
        (self.texts, self.text_bytes) = (texts, bytes);
        Ok(())
    }

    /// The tree, after a pass that was consistent.
    fn into_tree(self) -> Result<Tree, Failure<M::Error>> {
        let mut contexts: Vec<Context> = Vec::new();
        contexts.try_reserve(self.reached.len())?;
        let mut pending = vec![(self.root.unwrap_or(0), None, 1)];
        while let Some((address, parent, level)) = pending.pop() {
            let image = &self.nodes[self.by_address[&address]].image;
            let index = contexts.len();
            let field = |offset| word(image, offset);
            let total = field(offset::ALLOCATED);
            contexts.push(Context {
                parent,
                level,
                type_name: type_of(self.layout, image).map_or("", |context_type| context_type.name),
                total,
                tree_total: total,
                name: self.texts.get(&field(offset::NAME)).cloned(),
                ident: self.texts.get(&field(offset::IDENT)).cloned(),
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

#[cfg(any(test, feature = "oracle"))]
pub mod arena;
#[cfg(test)]
mod busy;
#[cfg(any(test, feature = "oracle"))]
pub mod naive;
#[cfg(test)]
mod tests;
