//! Rates: how often, and how many at once, by caller, group, plugin and tool (`limits.rates`). They ask no policy.
//!
//! A rule holds for the calls that it matches, and counts them apart by what it says (`by`). Each count is a token
//! bucket that holds `burst` calls and fills at `calls` in `per`, with at most `concurrency` under way. A call passes
//! every rule that holds for it, or takes nothing from any.
//!
//! Counts that are full again, with nothing under way, are the same as none, and are forgotten when there are too many.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::{Rate, RateBy};
use crate::gateway::identity::Caller;

/// Counts of one rule that are kept at once. Past it, those that are full are forgotten; if none is, the call counts
/// with the others that found no place.
const MAX_COUNTS: usize = 20_000;

/// All rules. Replaced while the gateway runs.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<Arc<Vec<Arc<Rule>>>>);

#[derive(Debug)]
struct Rule {
    settings: Rate,
    counts: Mutex<HashMap<Vec<Box<str>>, Count>>,
}

#[derive(Debug)]
struct Count {
    left: f64,
    at: Instant,
    running: u64,
}

/// What is called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Called<'a> {
    pub(crate) plugin: &'a str,
    /// By the plugin's own name: what a rule that names a tool is about, whether the plugin lists it or not.
    pub(crate) tool: &'a str,
    /// What it is counted under: names that no plugin lists are counted together.
    pub(crate) label: &'a str,
    /// It was taken off the rates before, and is only under way again.
    pub(crate) goes_on: bool,
}

/// A rule that is used up.
#[derive(Debug)]
pub(crate) struct UsedUp {
    pub(crate) rule: String,
    /// After how many seconds it may be tried again.
    pub(crate) seconds: u64,
}

/// A call that counts as under way until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Running(Vec<(Arc<Rule>, Vec<Box<str>>)>);

impl Drop for Running {
    fn drop(&mut self) {
        for (rule, key) in &self.0 {
            if let Some(count) = rule.counts.lock().get_mut(key) {
                count.running = count.running.saturating_sub(1);
            }
        }
    }
}

impl Rates {
    pub(crate) fn new(rates: &[Rate]) -> Self {
        let this = Self::default();
        this.replace(rates);
        this
    }

    /// Puts other rules in force. One that stays as it was keeps its counts.
    pub(crate) fn replace(&self, rates: &[Rate]) {
        let mut rules = self.0.lock();
        let kept = |rate: &Rate| rules.iter().find(|rule| rule.settings == *rate).cloned();
        let new = |rate: &Rate| Arc::new(Rule { settings: rate.clone(), counts: Mutex::default() });
        *rules = Arc::new(rates.iter().map(|rate| kept(rate).unwrap_or_else(|| new(rate))).collect());
    }

    /// Takes a call off every rule that holds for it.
    ///
    /// # Errors
    /// When one is used up; then it is taken off none.
    pub(crate) fn take(&self, caller: &Caller, called: Called<'_>) -> Result<Running, UsedUp> {
        let rules = Arc::clone(&self.0.lock());
        let (mut running, mut taken) = (Running::default(), Vec::new());
        for rule in rules.iter() {
            for key in rule.keys(caller, called) {
                match rule.take(&key, called.goes_on) {
                    Ok(key) => {
                        if !called.goes_on {
                            taken.push((Arc::clone(rule), key.clone()));
                        }
                        running.0.push((Arc::clone(rule), key));
                    }
                    Err(seconds) => {
                        taken.iter().for_each(|(rule, key)| rule.give_back(key));
                        return Err(UsedUp { rule: rule.settings.name.clone(), seconds });
                    }
                }
            }
        }
        Ok(running)
    }
}

impl Rule {
    /// The counts that a call belongs to: one, or one for each of the caller's groups. None, where the rule does not
    /// hold for it.
    fn keys(&self, caller: &Caller, called: Called<'_>) -> Vec<Vec<Box<str>>> {
        let rate = &self.settings;
        let is = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let name = caller.name().as_str();
        if !is(&rate.caller, name) || !is(&rate.plugin, called.plugin) || !is(&rate.tool, called.tool) {
            return Vec::new();
        }
        let groups: Vec<&str> =
            caller.groups().iter().map(String::as_str).filter(|group| is(&rate.group, group)).collect();
        if rate.group.is_some() && groups.is_empty() {
            return Vec::new();
        }
        let key = |group: &str| {
            let part = |by: &RateBy| match by {
                RateBy::Caller => name.into(),
                RateBy::Group => group.into(),
                RateBy::Plugin => called.plugin.into(),
                RateBy::Tool => called.label.into(),
            };
            rate.by.iter().map(part).collect()
        };
        if rate.by.contains(&RateBy::Group) { groups.into_iter().map(key).collect() } else { vec![key("")] }
    }

    fn take(&self, key: &[Box<str>], goes_on: bool) -> Result<Vec<Box<str>>, u64> {
        let mut counts = self.counts.lock();
        let (burst, rate) = self.bucket();
        let mut key = key.to_vec();
        if !counts.contains_key(&key) && counts.len() >= MAX_COUNTS {
            counts.retain(|_, count| count.running > 0 || count.filled(burst, rate) < burst);
            if counts.len() >= MAX_COUNTS {
                key = vec!["".into(); key.len()];
            }
        }
        let now = Instant::now();
        let count = counts.entry(key.clone()).or_insert(Count { left: burst, at: now, running: 0 });
        count.left = count.filled(burst, rate);
        count.at = now;
        if self.settings.concurrency.is_some_and(|most| count.running >= most) {
            return Err(1);
        }
        if !goes_on && rate.is_some_and(|_| count.left < 1.0) {
            let missing = (1.0 - count.left) / rate.unwrap_or(1.0);
            return Err(Duration::try_from_secs_f64(missing).map_or(1, |wait| wait.as_secs() + 1));
        }
        if !goes_on && rate.is_some() {
            count.left -= 1.0;
        }
        count.running += 1;
        Ok(key)
    }

    fn give_back(&self, key: &[Box<str>]) {
        if let Some(count) = self.counts.lock().get_mut(key) {
            count.left += 1.0;
        }
    }

    /// How many calls a bucket holds, and how many come back in a second.
    fn bucket(&self) -> (f64, Option<f64>) {
        let calls = self.settings.calls.map(|calls| calls as f64);
        let seconds = self.settings.per.as_duration().as_secs_f64().max(1e-3);
        let burst = self.settings.burst.map(|burst| burst as f64).or(calls).unwrap_or(1.0);
        (burst, calls.map(|calls| calls / seconds))
    }
}

impl Count {
    /// How many calls it holds by now.
    fn filled(&self, burst: f64, rate: Option<f64>) -> f64 {
        rate.map_or(burst, |rate| (self.left + self.at.elapsed().as_secs_f64() * rate).min(burst))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Called, Rates};
    use crate::config::{Period, Rate, RateBy};
    use crate::gateway::identity::Caller;

    fn called<'a>(plugin: &'a str, tool: &'a str) -> Called<'a> {
        Called { plugin, tool, label: tool, goes_on: false }
    }

    fn rate() -> Rate {
        Rate {
            name: "r".to_owned(),
            by: vec![RateBy::Caller],
            calls: Some(2),
            per: Period::new(Duration::from_secs(10)),
            ..Rate::default()
        }
    }

    fn caller(name: &str, groups: &[&str]) -> Caller {
        Caller::new(name.parse().unwrap(), groups.iter().map(|group| (*group).to_owned()).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_is_used_up_and_fills_again_and_each_caller_has_its_own() {
        let rates = Rates::new(&[rate()]);
        let (ann, bob) = (caller("user:ann", &[]), caller("user:bob", &[]));
        for _ in 0..2 {
            rates.take(&ann, called("p", "t")).unwrap();
        }
        let used = rates.take(&ann, called("p", "t")).unwrap_err();
        assert_eq!((used.rule.as_str(), used.seconds), ("r", 6));
        rates.take(&bob, called("p", "t")).unwrap();
        tokio::time::advance(Duration::from_secs(6)).await;
        rates.take(&ann, called("p", "t")).unwrap();
        assert!(rates.take(&ann, called("p", "t")).is_err());
    }

    #[test]
    fn calls_at_once_are_counted_until_they_end() {
        let rates = Rates::new(&[Rate { calls: None, concurrency: Some(1), by: Vec::new(), ..rate() }]);
        let running = rates.take(&caller("user:ann", &[]), called("p", "t")).unwrap();
        assert!(rates.take(&caller("user:bob", &[]), called("p", "t")).is_err());
        drop(running);
        rates.take(&caller("user:bob", &[]), called("p", "t")).unwrap();
    }

    #[test]
    fn a_rule_holds_for_what_it_matches() {
        let of_group = Rate { group: Some("g".to_owned()), by: vec![RateBy::Group], calls: Some(1), ..rate() };
        let of_tool =
            Rate { tool: Some("t".to_owned()), plugin: Some("p".to_owned()), calls: Some(1), by: Vec::new(), ..rate() };
        let (ann, bob, eve) = (caller("user:ann", &["g"]), caller("user:bob", &["g", "h"]), caller("user:eve", &["h"]));
        let rates = Rates::new(&[of_group]);
        rates.take(&ann, called("p", "t")).unwrap();
        assert!(rates.take(&bob, called("p", "t")).is_err(), "a group's members share");
        rates.take(&eve, called("p", "t")).unwrap();
        let rates = Rates::new(&[of_tool]);
        rates.take(&ann, called("p", "t")).unwrap();
        assert!(rates.take(&eve, called("p", "t")).is_err());
        rates.take(&eve, called("p", "u")).unwrap();
        rates.take(&eve, called("q", "t")).unwrap();
    }

    #[test]
    fn a_call_that_one_rule_refuses_takes_nothing_from_the_others() {
        let strict = Rate { calls: Some(1), by: vec![RateBy::Plugin], plugin: Some("q".to_owned()), ..rate() };
        let rates = Rates::new(&[rate(), strict]);
        let ann = caller("user:ann", &[]);
        rates.take(&ann, called("q", "t")).unwrap();
        assert!(rates.take(&ann, called("q", "t")).is_err());
        rates.take(&ann, called("p", "t")).unwrap();
        assert!(rates.take(&ann, called("p", "t")).is_err());
    }

    #[test]
    fn a_rule_of_a_tool_holds_for_its_name_whether_or_not_it_is_listed() {
        let of_tool = Rate { tool: Some("t".to_owned()), calls: Some(1), by: vec![RateBy::Tool], ..rate() };
        let rates = Rates::new(&[of_tool]);
        let ann = caller("user:ann", &[]);
        let unlisted = Called { label: "__unknown__", ..called("p", "t") };
        rates.take(&ann, unlisted).unwrap();
        assert!(rates.take(&ann, unlisted).is_err());
        rates.take(&ann, Called { label: "__unknown__", ..called("p", "u") }).unwrap();
    }

    #[test]
    fn a_call_that_goes_on_counts_as_under_way_and_not_again() {
        let rates = Rates::new(&[Rate { calls: Some(1), concurrency: Some(1), by: Vec::new(), ..rate() }]);
        let ann = caller("user:ann", &[]);
        drop(rates.take(&ann, called("p", "t")).unwrap());
        let again = Called { goes_on: true, ..called("p", "t") };
        let running = rates.take(&ann, again).unwrap();
        assert!(rates.take(&ann, again).is_err(), "two at once");
        drop(running);
        assert!(rates.take(&ann, called("p", "t")).is_err());
    }
}
