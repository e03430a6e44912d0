//! The walk of a tree of memory contexts agrees with its oracle on any memory that does not change.
//!
//! The input first describes a tree, two bytes for each context, and then what is damaged in it: a context, a field and
//! a value of eight bytes.
#![no_main]

use pg_meminfo::model::context_tree::arena::{Arena, LAYOUT};
use pg_meminfo::model::context_tree::{naive, offset};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&count, rest)) = input.split_first() else { return };
    let (contexts, damages) = rest.split_at(rest.len().min(2 * usize::from(count)));
    let mut arena = Arena::new();
    // Without room on both sides, nothing could be read ahead.
    arena.append_room();
    let name = arena.text("name");
    for &[parent, kind] in contexts.as_chunks().0 {
        let parent = arena.nodes.get(usize::from(parent) % arena.nodes.len().max(1)).copied().unwrap_or(0);
        let ident = if kind % 4 < 2 { 0 } else { arena.text(&"x".repeat(8 * usize::from(kind))) };
        arena.add(parent, usize::from(kind % 2), name, ident, kind.into());
    }
    arena.append_room();
    for damage in damages.as_chunks::<10>().0 {
        let &[node, field, ref value @ ..] = damage;
        let Some(&node) = arena.nodes.get(usize::from(node)) else { continue };
        let value = u64::from_le_bytes(*value);
        // A small number stands for a context.
        let value = usize::try_from(value).ok().and_then(|index| arena.nodes.get(index)).copied().unwrap_or(value);
        arena.set(node + u64::from(field) % (offset::SIZE as u64 / 8) * 8, value);
    }
    naive::assert_agrees(&mut arena, &LAYOUT);
});
