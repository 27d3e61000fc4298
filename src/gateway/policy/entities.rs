//! Callers and what they call in Cedar's terms.
//!
//! Names become entity ids as they are; a tool of a plugin is `"<plugin>/<tool>"`, which is one tool only, since a
//! plugin's name has no slash.

use std::collections::HashSet;
use std::str::FromStr;

use cedar_policy::{Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, ParseErrors, RestrictedExpression};
use chrono::{DateTime, SecondsFormat, Utc};

use super::arguments::{self, KINDS};
use super::{Action, Question, SubjectKind};
use crate::gateway::identity::Caller;
use crate::model::CallerKind;

/// The names of the schema, parsed once.
#[derive(Debug)]
pub(super) struct Names {
    user: EntityTypeName,
    service: EntityTypeName,
    anonymous: EntityTypeName,
    group: EntityTypeName,
    plugin: EntityTypeName,
    tool: EntityTypeName,
    resource: EntityTypeName,
    prompt: EntityTypeName,
    /// In the order of [`Action::ALL`].
    actions: Vec<EntityUid>,
    /// The entities that hold the arguments.
    pub(super) arguments: [EntityUid; KINDS.len()],
}

/// Who calls what, in Cedar's terms.
#[derive(Debug)]
pub(super) struct Parties {
    pub(super) principal: EntityUid,
    pub(super) action: EntityUid,
    pub(super) resource: EntityUid,
    /// The caller and what is called, with their attributes and what they are in.
    pub(super) entities: Entities,
}

/// A question that cannot be put in Cedar's terms, whatever the policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inexpressible;

impl Names {
    pub(super) fn new() -> Result<Self, ParseErrors> {
        let name = EntityTypeName::from_str;
        let action = |id| Ok::<_, ParseErrors>(EntityUid::from_type_name_and_id(name("Action")?, EntityId::new(id)));
        let [text, number, decimal, flag, list] = KINDS.map(|(_, entity)| name(entity));
        Ok(Self {
            user: name("User")?,
            service: name("Service")?,
            anonymous: name("Anonymous")?,
            group: name("Group")?,
            plugin: name("Plugin")?,
            tool: name("Tool")?,
            resource: name("Resource")?,
            prompt: name("Prompt")?,
            actions: Action::ALL.into_iter().map(|known| action(known.as_str())).collect::<Result<_, _>>()?,
            arguments: arguments::uids(&[text?, number?, decimal?, flag?, list?]),
        })
    }

    /// Who calls what.
    pub(super) fn parties(&self, question: &Question<'_>) -> Result<Parties, Inexpressible> {
        let uid = |name: &EntityTypeName, id: &str| EntityUid::from_type_name_and_id(name.clone(), EntityId::new(id));
        let text = |name: &str, value: &str| (name.to_owned(), RestrictedExpression::new_string(value.to_owned()));
        let principal = self.principal(question.caller);
        let plugin = uid(&self.plugin, question.plugin);
        let action = self.actions.get(question.action as usize).ok_or(Inexpressible)?;
        let named = match question.subject {
            SubjectKind::Tool => Some((&self.tool, "name")),
            SubjectKind::Resource => Some((&self.resource, "uri")),
            SubjectKind::Prompt => Some((&self.prompt, "name")),
            SubjectKind::Plugin => None,
        };
        let groups: HashSet<EntityUid> = question.caller.groups().iter().map(|group| uid(&self.group, group)).collect();
        let caller = Entity::new(principal.clone(), [text("name", question.caller.name().id())].into(), groups)
            .map_err(|_| Inexpressible)?;
        let of_plugin = text("plugin", question.plugin);
        let (resource, called) = match named {
            None => {
                let called = Entity::new(plugin.clone(), [of_plugin].into(), HashSet::new());
                (plugin, vec![called.map_err(|_| Inexpressible)?])
            }
            Some((kind, name_of)) => {
                let resource = uid(kind, &format!("{}/{}", question.plugin, question.name));
                let attributes = [of_plugin, text(name_of, question.name)];
                let called = Entity::new(resource.clone(), attributes.into(), [plugin].into());
                (resource, vec![called.map_err(|_| Inexpressible)?])
            }
        };
        let entities = Entities::from_entities(called.into_iter().chain([caller]), None).map_err(|_| Inexpressible)?;
        Ok(Parties { principal, action: action.clone(), resource, entities })
    }

    fn principal(&self, caller: &Caller) -> EntityUid {
        let kind = match caller.name().kind() {
            CallerKind::User => &self.user,
            CallerKind::Service => &self.service,
            CallerKind::Anonymous => &self.anonymous,
        };
        EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(caller.name().id()))
    }

    /// The context of a call. What policies do not look at is left out.
    pub(super) fn context(
        &self,
        workspace: &str,
        time: Option<DateTime<Utc>>,
        with_arguments: bool,
        details: &[(&'static str, &str)],
    ) -> Result<Context, Inexpressible> {
        let mut pairs = vec![("workspace".to_owned(), RestrictedExpression::new_string(workspace.to_owned()))];
        for (name, value) in details {
            pairs.push(((*name).to_owned(), RestrictedExpression::new_string((*value).to_owned())));
        }
        if let Some(time) = time {
            let text = time.to_rfc3339_opts(SecondsFormat::Millis, true);
            pairs.push(("time".to_owned(), RestrictedExpression::new_datetime(text)));
        }
        if with_arguments {
            let kinds = KINDS
                .iter()
                .zip(&self.arguments)
                .map(|((kind, _), uid)| ((*kind).to_owned(), RestrictedExpression::new_entity_uid(uid.clone())));
            let arguments = RestrictedExpression::new_record(kinds).map_err(|_| Inexpressible)?;
            pairs.push(("arguments".to_owned(), arguments));
        }
        Context::from_pairs(pairs).map_err(|_| Inexpressible)
    }
}
