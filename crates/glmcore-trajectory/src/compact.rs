//! Letting old segments go: what is still needed of the oldest one is written again at the end of the log.
//!
//! A group is written as a whole, so one slow group keeps nothing else on disk. The oldest segment goes when at most
//! half of it is needed, or when the log is larger than twice all that is needed plus two segments.

use std::borrow::Cow;

use crate::GroupId;
use crate::event::Event;
use crate::journal::Journal;
use crate::state::State;

/// Segments that one call lets go, so that it is over soon.
const MAX_SEGMENTS: usize = 4;

/// Lets old segments go; the next commit removes them.
pub(crate) fn compact(state: &mut State, journal: &mut Journal) {
    for _ in 0..MAX_SEGMENTS {
        if journal.segments.len() < 2 {
            return;
        }
        let oldest = journal.segments[0];
        let Kept { groups, tasks, bytes: kept } = kept_by(state, oldest.number);
        let needed = kept_by(state, u64::MAX).bytes;
        let is_loose = journal.bytes() > 2 * needed + 2 * journal.segment_bytes();
        if 2 * kept > oldest.bytes && !is_loose {
            return;
        }
        for id in groups {
            let group = state.held[&id].group.clone();
            let place = journal.record(state, &Event::Group(Cow::Borrowed(&group)));
            state.held.get_mut(&id).expect("it is held").place = place;
        }
        for task in tasks {
            let counts =
                Event::Task { task: Cow::Borrowed(&task), stats: state.tasks[&task].stats };
            let place = journal.record(state, &counts);
            state.tasks.get_mut(&task).expect("it is known").segment = place.segment;
        }
        journal.drop_oldest();
    }
}

/// What has to be written again for a segment to go.
struct Kept {
    groups: Vec<GroupId>,
    tasks: Vec<String>,
    /// About how much that is.
    bytes: u64,
}

/// Groups and tasks with events in `segment` or before.
fn kept_by(state: &State, segment: u64) -> Kept {
    let groups = state.held.iter().filter(|(_, held)| held.place.segment <= segment);
    let groups: Vec<GroupId> = groups.map(|(&id, _)| id).collect();
    let tasks = state.tasks.iter().filter(|(_, task)| task.segment <= segment);
    let tasks: Vec<String> = tasks.map(|(task, _)| task.clone()).collect();
    let of_groups = groups.iter().map(|id| state.held[id].place.bytes).sum::<u64>();
    let of_tasks = tasks.iter().map(|task| task.len() as u64 + 64).sum::<u64>();
    Kept { groups, tasks, bytes: of_groups + of_tasks }
}
