/** Which columns the samples have: what this server does not know is left out of the page. */
import { useQuery } from "@tanstack/react-query";
import { useMemo } from "react";
import { run, sql } from "../api/sql";
import { ATTRIBUTES, type Attribute } from "./attributes";

export function useColumns(org: string) {
  const answer = useQuery({
    queryKey: ["columns", org],
    staleTime: Infinity,
    queryFn: async ({ signal }) => {
      const found = await run(org, sql`SELECT table_name, column_name, data_type FROM information_schema.columns ORDER BY table_name, ordinal_position`, signal);
      const tables: Record<string, { name: string; type: string }[]> = {};
      for (const [table, name, type] of found.rows) (tables[String(table)] ??= []).push({ name: String(name), type: String(type) });
      return tables;
    },
  });
  const attributes = useMemo<Attribute[]>(() => {
    const known = new Set(answer.data?.["tool_invocations"]?.map(({ name }) => name));
    return ATTRIBUTES.filter(({ column }) => known.has(column));
  }, [answer.data]);
  return { ...answer, attributes };
}
