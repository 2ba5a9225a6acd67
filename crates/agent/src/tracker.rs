//! Counts things that are under way, so that one can wait for their end.

use tokio::sync::watch;

/// A counter of things under way. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tracker(watch::Sender<usize>);

/// One thing under way, until dropped.
#[derive(Debug)]
pub struct Underway(watch::Sender<usize>);

impl Tracker {
    /// Counts one more.
    #[must_use]
    pub fn enter(&self) -> Underway {
        self.0.send_modify(|count| *count += 1);
        Underway(self.0.clone())
    }

    /// Waits until nothing is under way.
    pub async fn idle(&self) {
        // Fails only without a sender, and `self` is one.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_when_all_guards_are_gone() {
        let tracker = Tracker::default();
        tracker.idle().await;
        let guard = tracker.enter();
        let mut waiting = std::pin::pin!(tracker.idle());
        let pending = std::future::poll_fn(|cx| {
            std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())
        });
        assert!(pending.await);
        drop(guard);
        waiting.await;
    }
}
