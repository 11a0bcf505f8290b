// From Prometheus' answers to the data frames that Grafana's Prometheus data source would make of
// them, and through a panel's transformations and field options to what its component draws.
import {
  applyFieldOverrides,
  cacheFieldDisplayNames,
  createDataFrame,
  FieldType,
  standardTransformers,
  standardTransformersRegistry,
  transformDataFrame,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

const { mergeTransformer, filterFieldsByNameTransformer, organizeFieldsTransformer } = standardTransformers;
standardTransformersRegistry.setInit(() =>
  [mergeTransformer, filterFieldsByNameTransformer, organizeFieldsTransformer].map((transformation) => ({
    id: transformation.id,
    name: transformation.name,
    transformation,
  }))
);

// The frames of a panel; `answers` maps a query's letter to the `result` of Prometheus' API.
export async function framesOf(panel, answers, theme) {
  const several = panel.targets.length > 1;
  const frames = panel.targets.flatMap((target) => {
    const series = answers[target.refId];
    if (panel.type === 'table') {
      return series.length ? [tableFrame(target, series, several)] : [];
    }
    return series.map((one) => seriesFrame(target, one));
  });
  const changed = await firstValueFrom(transformDataFrame(panel.transformations ?? [], frames));
  const shown = applyFieldOverrides({
    data: changed,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registryFor(panel.fieldConfig),
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
  cacheFieldDisplayNames(shown);
  return shown;
}

function seriesFrame(target, { metric, values, value }) {
  const points = values ?? [value];
  return createDataFrame({
    refId: target.refId,
    fields: [
      { name: 'Time', type: FieldType.time, values: points.map(([t]) => t * 1000), config: {} },
      {
        name: 'Value',
        type: FieldType.number,
        values: points.map(([, v]) => Number(v)),
        labels: metric,
        config: { displayNameFromDS: legend(target, metric) },
      },
    ],
  });
}

function tableFrame(target, series, several) {
  const names = [...new Set(series.flatMap(({ metric }) => Object.keys(metric)))].sort();
  const field = (name, type, values) => ({ name, type, values, config: {} });
  return createDataFrame({
    refId: target.refId,
    fields: [
      field('Time', FieldType.time, series.map(({ value }) => value[0] * 1000)),
      ...names.map((name) => field(name, FieldType.string, series.map((s) => s.metric[name]))),
      field(
        several ? `Value #${target.refId}` : 'Value',
        FieldType.number,
        series.map(({ value }) => Number(value[1]))
      ),
    ],
  });
}

function legend(target, metric) {
  if (target.legendFormat !== '__auto') {
    return target.legendFormat.replace(/{{\s*(\w+)\s*}}/g, (_, name) => metric[name] ?? '');
  }
  return Object.entries(metric).map(([name, value]) => `${name}="${value}"`).join(', ') || target.expr;
}

// Every option that a panel sets, as one that Grafana knows: it applies to all fields as it is.
function registryFor({ defaults, overrides }) {
  const ids = new Set(Object.keys(defaults).filter((id) => id !== 'custom'));
  Object.keys(defaults.custom ?? {}).forEach((id) => ids.add(`custom.${id}`));
  overrides.forEach(({ properties }) => properties.forEach(({ id }) => ids.add(id)));
  const items = [...ids].map((id) => ({
    id,
    path: id.replace(/^custom\./, ''),
    isCustom: id.startsWith('custom.'),
    process: (value) => value,
    shouldApply: () => true,
  }));
  return { list: () => items, getIfExists: (id) => items.find((item) => item.id === id) };
}
