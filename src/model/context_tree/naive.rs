//! The oracle: reads a tree once, context by context, with all checks of the links. Right for a memory that does not
//! change. In one that changes it returns trees that never existed, and so shows what the second read is for.

use std::collections::HashSet;
use std::convert::Infallible;

use crate::model::memory::{Memory, Piece};

use super::{Layout, Limits, MAX_TEXT, Outcome, Tree, offset, read_tree};

/// A context, as far as it is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// The index of its parent.
    pub parent: Option<usize>,
    /// The name of its type.
    pub type_name: &'static str,
    /// Its name.
    pub name: Option<Vec<u8>>,
    /// Its identifier.
    pub ident: Option<Vec<u8>>,
    /// Its size.
    pub total: u64,
}

/// The contexts of a tree.
pub fn seen(tree: &Tree) -> Vec<Seen> {
    let owned = |text: Option<&[u8]>| text.map(<[u8]>::to_vec);
    let seen = |context: &super::Context| Seen {
        parent: context.parent,
        type_name: context.type_name,
        name: owned(tree.name(context)),
        ident: owned(tree.ident(context)),
        total: context.total,
    };
    tree.contexts.iter().map(seen).collect()
}

/// Reads the tree once. `None` if something is wrong with it.
pub fn read_once(memory: &mut impl Memory<Error = Infallible>, layout: &Layout) -> Option<Vec<Seen>> {
    let mut contexts = Vec::new();
    let mut visited = HashSet::new();
    // Address, index of the parent, address of the parent, address of the previous child.
    let mut pending = vec![(number(memory, layout.root)?, None, 0, 0)];
    while let Some((address, parent, parent_address, previous)) = pending.pop() {
        if address % 8 != 0 || !visited.insert(address) {
            return None;
        }
        let image = bytes(memory, address, offset::SIZE)?;
        let field = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        let tag = u32::from_le_bytes(image[..4].try_into().unwrap());
        let is_type = |known: &&super::ContextType| known.tag == tag && known.methods == field(offset::METHODS);
        let type_name = layout.types.iter().find(is_type)?.name;
        // A first child may already point to the one that is being put before it.
        let is_first_child = parent.is_some() && previous == 0;
        if field(offset::PARENT) != parent_address || (!is_first_child && field(offset::PREVIOUS) != previous) {
            return None;
        }
        let index = contexts.len();
        contexts.push(Seen {
            parent,
            type_name,
            name: text(memory, field(offset::NAME))?,
            ident: text(memory, field(offset::IDENT))?,
            total: field(offset::ALLOCATED),
        });
        if field(offset::NEXT) != 0 {
            // The root has no sibling.
            parent?;
            pending.push((field(offset::NEXT), parent, parent_address, address));
        }
        if field(offset::FIRST_CHILD) != 0 {
            pending.push((field(offset::FIRST_CHILD), Some(index), address, 0));
        }
    }
    Some(contexts)
}

fn bytes(memory: &mut impl Memory<Error = Infallible>, address: u64, length: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; length];
    let Ok(read) = memory.read(&[Piece { address, length }], &mut buffer);
    (read == 1).then_some(buffer)
}

fn number(memory: &mut impl Memory<Error = Infallible>, address: u64) -> Option<u64> {
    bytes(memory, address, 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

/// The text at an address, or nothing for NULL. `None` if it cannot be read.
fn text(memory: &mut impl Memory<Error = Infallible>, address: u64) -> Option<Option<Vec<u8>>> {
    if address == 0 {
        return Some(None);
    }
    let mut text = Vec::new();
    // One more byte than MAX_TEXT is read to see whether the text ends there.
    while text.len() <= MAX_TEXT {
        let at = address.wrapping_add(text.len() as u64);
        // As much as does not cross into another page.
        let chunk = bytes(memory, at, 16 - (at % 16) as usize)?;
        match chunk.iter().position(|&byte| byte == 0) {
            Some(end) => {
                text.extend_from_slice(&chunk[..end]);
                break;
            }
            None => text.extend_from_slice(&chunk),
        }
    }
    text.truncate(MAX_TEXT);
    Some(Some(text))
}

/// Asserts that both readers agree on a memory that does not change.
pub fn assert_agrees(memory: &mut impl Memory<Error = Infallible>, layout: &Layout) {
    for one_by_one in [0, 32] {
        let limits = Limits { contexts: 1_000_000, passes: 3, one_by_one };
        let outcome = read_tree(memory, layout, limits, &mut || (), &mut |_| true).expect("the memory does not fail");
        match (read_once(memory, layout), outcome) {
            (Some(expected), Outcome::Found(tree, pass)) => {
                assert_eq!(seen(&tree), expected);
                assert_eq!(pass, 1);
                for context in &tree.contexts {
                    let parent = context.parent.map_or(0, |parent| tree.contexts[parent].level);
                    assert_eq!(context.level, parent + 1);
                }
                assert_tree_totals(&tree);
            }
            (None, Outcome::KeptChanging(passes)) => assert_eq!(passes, limits.passes),
            (expected, outcome) => panic!("{expected:?}, {outcome:?}"),
        }
    }
}

/// Asserts that each context's tree total is its own total and those of its children. Sums that do not fit are left
/// out.
fn assert_tree_totals(tree: &Tree) {
    let mut sums: Vec<u128> = tree.contexts.iter().map(|context| context.total.into()).collect();
    for context in &tree.contexts {
        if let Some(parent) = context.parent {
            sums[parent] += u128::from(context.tree_total);
        }
    }
    for (context, sum) in tree.contexts.iter().zip(sums) {
        assert_eq!(u128::from(context.tree_total), sum.min(u64::MAX.into()));
    }
}
