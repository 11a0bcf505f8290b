// One component of Grafana's for each type of panel that the boards have.
import {
  dateTime,
  FieldType,
  getDisplayValueAlignmentFactors,
  getFieldDisplayValues,
  ThresholdsMode,
} from '@grafana/data';
import { VizOrientation } from '@grafana/schema';
import { BarGauge, BigValue, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';
import React from 'react';

import { Heatmap } from './heatmap';

export function Panel({ panel, frames, answers, exemplars, width, height, range, theme }) {
  const empty = frames.length === 0 || frames.every((frame) => frame.length === 0);
  if (empty && panel.type !== 'stat') {
    const style = { height, display: 'grid', placeItems: 'center', textAlign: 'center', padding: 16 };
    return <div style={{ ...style, color: theme.colors.text.secondary }}>{panel.fieldConfig.defaults.noValue}</div>;
  }
  const shared = { panel, frames, width, height, theme, range };
  switch (panel.type) {
    case 'stat':
      return <Stat {...shared} />;
    case 'bargauge':
      return <Bars {...shared} />;
    case 'timeseries':
      return <Graph {...shared} />;
    case 'table':
      return (
        <TableNG
          data={frames[0]}
          width={width}
          height={height}
          initialSortBy={panel.options.sortBy}
          cellHeight="sm"
          enableVirtualization={false}
          structureRev={1}
        />
      );
    case 'heatmap': {
      const { unit } = panel.options.yAxis;
      return <Heatmap series={answers.A} dots={exemplars} unit={unit} {...shared} />;
    }
    default:
      throw new Error(`no component for a panel of type ${panel.type}`);
  }
}

function displays({ panel, frames, theme }) {
  return getFieldDisplayValues({
    data: frames,
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
}

function Stat({ panel, frames, width, height, theme }) {
  const { colorMode, graphMode, textMode } = panel.options;
  const draw = ({ value, width, height, count, alignmentFactors }) => (
    <BigValue
      {...{ width, height, count, theme, colorMode, graphMode, textMode, alignmentFactors }}
      value={value.display}
    />
  );
  return (
    <VizRepeater
      getValues={() => displays({ panel, frames, theme })}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={draw}
      orientation={VizOrientation.Auto}
      source={frames}
      autoGrid
      renderCounter={0}
      width={width}
      height={height}
    />
  );
}

function Bars({ panel, frames, width, height, theme }) {
  const { displayMode, valueMode, orientation, namePlacement } = panel.options;
  const draw = ({ value, width, height, orientation, alignmentFactors }) => (
    <BarGauge
      {...{ width, height, orientation, theme, displayMode, namePlacement, alignmentFactors }}
      value={value.display}
      field={value.field}
      display={value.view?.getFieldDisplayProcessor(value.colIndex)}
      valueDisplayMode={valueMode}
      itemSpacing={8}
      lcdCellWidth={12}
      showUnfilled
    />
  );
  return (
    <VizRepeater
      getValues={() => displays({ panel, frames, theme })}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={draw}
      orientation={orientation}
      source={frames}
      minVizHeight={16}
      maxVizHeight={60}
      itemSpacing={8}
      renderCounter={0}
      width={width}
      height={height}
    />
  );
}

function Graph({ panel, frames, width, height, range, theme }) {
  const timeRange = { from: dateTime(range.from * 1000), to: dateTime(range.to * 1000) };
  return (
    <TimeSeries
      frames={frames.map(finite)}
      structureRev={1}
      timeRange={{ ...timeRange, raw: timeRange }}
      timeZone="utc"
      width={width}
      height={height}
      legend={panel.options.legend}
      options={panel.options}
      theme={theme}
    />
  );
}

// What is no number is a gap, as in Grafana's own panel: the component would draw nothing at all.
function finite(frame) {
  const gaps = (field) => ({ ...field, values: field.values.map((v) => (Number.isFinite(v) ? v : null)) });
  return { ...frame, fields: frame.fields.map((field) => (field.type === FieldType.number ? gaps(field) : field)) };
}

// In a file the lowest step's value is null; Grafana makes it minus infinity when it loads one.
export function loaded(panel) {
  const mend = (thresholds) =>
    thresholds && {
      mode: thresholds.mode ?? ThresholdsMode.Absolute,
      steps: thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity })),
    };
  const { defaults, overrides } = panel.fieldConfig;
  const mended = overrides.map((one) => ({
    ...one,
    properties: one.properties.map((p) => (p.id === 'thresholds' ? { ...p, value: mend(p.value) } : p)),
  }));
  const thresholds = mend(defaults.thresholds);
  return {
    ...panel,
    fieldConfig: { defaults: thresholds ? { ...defaults, thresholds } : defaults, overrides: mended },
  };
}
