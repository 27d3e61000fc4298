//! The members of an object, replaced one by one while the others keep their bytes.

use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, BytesMut};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{Json, text_of};

/// The members of an object: their names read, the rest as it was written.
#[derive(Clone, Default)]
pub(crate) struct Object(Vec<Member>);

#[derive(Clone)]
struct Member {
    name: Box<str>,
    /// The name as it was written.
    key: Json,
    value: Json,
}

impl Object {
    /// The members of what is an object.
    pub(super) fn read(json: &Json) -> Option<Self> {
        if !json.is_object() {
            return None;
        }
        let members: Members<'_> = json.read()?;
        let members = members.0.into_iter().map(|(name, value)| {
            let key = Json::within(&json.0, name);
            let name = text_of(name.get().as_bytes()).unwrap_or_default().into();
            Member { name, key, value: Json::within(&json.0, value) }
        });
        Some(Self(members.collect()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The member of that name; the last, where there are several.
    pub(crate) fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().rev().find(|member| *member.name == *name).map(|member| &member.value)
    }

    /// The member of that name that is text.
    pub(crate) fn text(&self, name: &str) -> Option<Cow<'_, str>> {
        self.get(name)?.as_text()
    }

    /// The members' names and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Json)> {
        self.0.iter().map(|member| (&*member.name, &member.value))
    }

    /// Sets a member, in its place if there is one.
    pub(crate) fn set(&mut self, name: &str, value: Json) {
        match self.0.iter().position(|member| *member.name == *name) {
            Some(place) => {
                let mut index = 0;
                // One that was named twice is there once afterwards.
                self.0.retain(|member| {
                    index += 1;
                    index - 1 <= place || *member.name != *name
                });
                if let Some(member) = self.0.get_mut(place) {
                    member.value = value;
                }
            }
            None => self.0.push(Member { name: name.into(), key: Json::text(name), value }),
        }
    }

    /// Adds a member at the end.
    pub(crate) fn add(&mut self, name: &str, value: Json) {
        self.0.push(Member { name: name.into(), key: Json::text(name), value });
    }

    /// Removes a member, and gives it.
    pub(crate) fn take(&mut self, name: &str) -> Option<Json> {
        let found = self.get(name).cloned();
        if found.is_some() {
            self.0.retain(|member| *member.name != *name);
        }
        found
    }

    /// Keeps the members that `keep` says yes to.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&str, &Json) -> bool) {
        self.0.retain(|member| keep(&member.name, &member.value));
    }

    pub(crate) fn to_json(&self) -> Json {
        let length: usize = self.0.iter().map(|member| member.key.len() + member.value.len() + 2).sum();
        let mut text = BytesMut::with_capacity(length + 2);
        text.put_u8(b'{');
        for (index, member) in self.0.iter().enumerate() {
            if index > 0 {
                text.put_u8(b',');
            }
            text.extend_from_slice(member.key.as_bytes());
            text.put_u8(b':');
            text.extend_from_slice(member.value.as_bytes());
        }
        text.put_u8(b'}');
        Json(text.freeze())
    }
}

/// The members of an object, in their order, each as it was written.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Object({} members)", self.0.len())
    }
}
